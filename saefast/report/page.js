(async () => {
  const heads = document.querySelectorAll("#features th");
  const columns = await unpacked("features.parquet");
  if (columns === null) return;
  const total = columns.feature ? columns.feature.length : 0;
  const value = (name, i) => (columns[name] ? columns[name][i] : null);
  const label = (i) => `${columns.seed[i]}:${columns.feature[i]}`;
  const searched = Array.from({ length: total }, (_, i) => {
    const texts = (value("contexts", i) || []).map((c) => c.slice(0, 3).join(""));
    const explained = ["explanation", "kind"].map((name) => value(name, i) || "");
    return [label(i), value("token", i) || "", ...texts, ...explained].join(" ").toLowerCase();
  });
  const keys = {
    feature: (i) => columns.seed[i] * 1e9 + columns.feature[i],
    group: (i) => ["stable", "mixed", "unstable"].indexOf(value("group", i)),
    score: (i) => value("score", i),
    rate: (i) => value("rate", i),
    effect: (i) => value("effect", i),
    auroc: (i) => value("auroc", i),
    explanation: (i) => value("explanation", i) || null,
    kind: (i) => value("kind", i) || null,
    context: (i) => (value("contexts", i) || [[""]])[0]?.[1] || "",
  };
  // Hide columns that the run lacks.
  for (const head of heads) {
    const name = head.dataset.column;
    head.classList.add(`column-${name}`);
    if (!["feature", "context"].includes(name) && !columns[name]) head.hidden = true;
  }

  const open = new Set();

  function matches(i, words) {
    const group = byId("group").value, seed = byId("seed").value;
    if (group && value("group", i) !== group) return false;
    if (seed && String(columns.seed[i]) !== seed) return false;
    return /^\d+:\d+$/.test(words) ? label(i) === words : !words || searched[i].includes(words);
  }

  function context([before, token, after], short) {
    const line = element("span", undefined, "text");
    const tidy = (text) => (short ? text.replace(/\s+/g, " ") : text);
    line.append(tidy(short ? before.slice(-40) : before), element("mark", tidy(token) || " "),
      tidy(short ? after.slice(0, 30) : after));
    return line;
  }

  function detail(i) {
    const row = element("tr", undefined, "detail"), cell = element("td");
    cell.colSpan = heads.length;
    if (value("explanation", i)) {
      const words = value("kind", i) ? `${value("explanation", i)} (${value("kind", i)})` : value("explanation", i);
      cell.append(element("h4", "Explanation"), element("p", words, "text"));
    }
    const texts = value("contexts", i) || [];
    if (texts.length) {
      cell.append(element("h4", "Top contexts"));
      const list = element("ul");
      for (const one of texts) {
        const item = element("li");
        item.append(context(one, false), element("span", `  (${one[3]})`, "range"));
        list.append(item);
      }
      cell.append(list);
    }
    const partners = value("partners", i) || [];
    cell.append(element("h4", partners.length ? "Most similar in the other SAEs" : "No partners"));
    const list = element("ul");
    for (const [seed, feature, cosine] of partners) {
      const item = element("li"), link = element("button", `${seed}:${feature}`);
      link.type = "button";
      link.onclick = () => { byId("search").value = `${seed}:${feature}`; search(); byId("search").focus(); };
      item.append(link, ` cosine ${cosine}`);
      list.append(item);
    }
    cell.append(list);
    const facts = [["firing rate", "rate"], ["effect", "effect"], ["token AUROC", "auroc"]]
      .filter(([, name]) => columns[name])
      .map(([words, name]) => `${words} ${shown(value(name, i))}`);
    for (const [words, name, beside, control] of [
      ["rule", "rule_score", "by chance up to", "rule_null"],
      ["detection", "detection", "with another explanation", "detection_shuffled"],
      ["fuzzing", "fuzzing"],
      ["steering succeeds", "steer_success", "in another direction", "steer_success_control"],
    ]) {
      if (value(name, i) === null) continue;
      const other = control && value(control, i) !== null;
      facts.push(`${words} ${shown(value(name, i))}` +
        (other ? ` (${beside} ${shown(value(control, i))})` : ""));
    }
    if (value("token", i)) facts.push(`best predicted by the token ${JSON.stringify(value("token", i))}`);
    cell.append(element("p", facts.join(" · "), "note"));
    row.append(cell);
    return row;
  }

  function drawn(i) {
    const row = element("tr");
    const cells = {
      feature: () => {
        const button = element("button", label(i));
        button.type = "button";
        button.setAttribute("aria-expanded", String(open.has(i)));
        button.onclick = () => {
          const was = open.delete(i);
          if (!was) open.add(i);
          button.setAttribute("aria-expanded", String(!was));
          if (was) row.nextElementSibling.remove(); else row.after(detail(i));
        };
        return button;
      },
      group: () => value("group", i),
      score: () => {
        const cell = element("span", shown(value("score", i)));
        if (columns.low) cell.append(element("span", ` ${shown(columns.low[i], 2)}–${shown(columns.high[i], 2)}`, "range"));
        return cell;
      },
      rate: () => shown(value("rate", i)),
      effect: () => shown(value("effect", i)),
      auroc: () => shown(value("auroc", i)),
      explanation: () => element("span", value("explanation", i) || "–", "text"),
      kind: () => value("kind", i) || null,
      context: () => {
        const first = (value("contexts", i) || [])[0];
        if (first) return context(first, true);
        return (value("partners", i) || []).map(([s, f, c]) => `${s}:${f} (${c})`).join("  ");
      },
    };
    for (const head of heads) {
      const name = head.dataset.column;
      const cell = element("td", undefined, `column-${name}`);
      cell.hidden = head.hidden;
      cell.append(cells[name]() ?? "–");
      row.append(cell);
    }
    return row;
  }

  const search = pagedTable({
    section: "features",
    noun: "features",
    total,
    keys,
    matches,
    elements: (i) => (open.has(i) ? [drawn(i), detail(i)] : [drawn(i)]),
    filters: ["group", "seed"],
    falling: ["score", "rate", "effect", "auroc"],
    first: "feature",
  });
})();
