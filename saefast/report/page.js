(async () => {
  const heads = document.querySelectorAll("#features th");
  const columns = await unpacked("features.parquet");
  if (columns === null) return;
  const total = columns.feature ? columns.feature.length : 0;
  const value = (name, i) => (columns[name] ? columns[name][i] : null);
  const label = (i) => `${columns.seed[i]}:${columns.feature[i]}`;

  // Contexts and partners are unpacked a piece at a time, when one of its rows is shown. They follow
  // this script, so the browser may not have read them yet.
  const pieces = new Map();
  async function unpackPiece(id) {
    while (!byId(id)?.nextSibling && document.readyState === "loading") {
      await new Promise((resolve) => setTimeout(resolve, 10));
    }
    return byId(id) ? unpack(id) : {};
  }
  function piece(number) {
    if (!pieces.has(number)) pieces.set(number, unpackPiece(`details-${number}`));
    return pieces.get(number);
  }
  async function details(i) {
    const its = await piece(Math.floor(i / columns.rowsOfPiece));
    const at = i % columns.rowsOfPiece;
    return { contexts: its.contexts?.[at] ?? [], partners: its.partners?.[at] ?? [] };
  }

  // The first search unpacks all pieces.
  let searched = null;
  async function texts() {
    const found = [];
    for (let start = 0; start < total; start += columns.rowsOfPiece) {
      const { contexts } = await piece(start / columns.rowsOfPiece);
      for (let i = start; i < Math.min(start + columns.rowsOfPiece, total); i++) {
        const words = ["token", "explanation", "kind"].map((name) => value(name, i) || "");
        const own = contexts ? contexts[i - start].map((c) => c.slice(0, 3).join("")) : [];
        found.push([label(i), ...words, ...own].join(" ").toLowerCase());
      }
    }
    searched = found;
  }

  const keys = {
    feature: (i) => columns.seed[i] * 1e9 + columns.feature[i],
    group: (i) => ["stable", "mixed", "unstable"].indexOf(value("group", i)),
    score: (i) => value("score", i),
    rate: (i) => value("rate", i),
    effect: (i) => value("effect", i),
    auroc: (i) => value("auroc", i),
    explanation: (i) => value("explanation", i) || null,
    kind: (i) => value("kind", i) || null,
    context: (i) => value("top", i) || null,
  };
  // Hide columns that the run lacks.
  for (const head of heads) {
    const name = head.dataset.column;
    head.classList.add(`column-${name}`);
    if (!["feature", "context"].includes(name) && !columns[name]) head.hidden = true;
  }

  const open = new Set();
  let chosen = null; // mark of a figure whose features are shown

  const isLabel = (words) => /^\d+:\d+$/.test(words);

  function matches(i, words) {
    const group = byId("group").value, seed = byId("seed").value;
    if (group && value("group", i) !== group) return false;
    if (seed && String(columns.seed[i]) !== seed) return false;
    if (chosen && columns.marks[chosen.figure][i] !== chosen.mark) return false;
    return isLabel(words) ? label(i) === words : !words || !searched || searched[i].includes(words);
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
    details(i).then((its) => fill(cell, i, its));
    row.append(cell);
    return row;
  }

  function fill(cell, i, { contexts, partners }) {
    if (value("explanation", i)) {
      const words = value("kind", i) ? `${value("explanation", i)} (${value("kind", i)})` : value("explanation", i);
      cell.append(element("h4", "Explanation"), element("p", words, "text"));
    }
    if (contexts.length) {
      cell.append(element("h4", "Top contexts"));
      const list = element("ul");
      for (const one of contexts) {
        const item = element("li");
        item.append(context(one, false), element("span", `  (${one[3]})`, "range"));
        list.append(item);
      }
      cell.append(list);
    }
    cell.append(element("h4", partners.length ? "Most similar in the other SAEs" : "No partners"));
    const list = element("ul");
    for (const [seed, feature, similarity] of partners) {
      const item = element("li"), link = element("button", `${seed}:${feature}`);
      link.type = "button";
      link.onclick = () => {
        reset();
        byId("search").value = `${seed}:${feature}`;
        openOne(() => byId("search"));
      };
      item.append(link, ` similarity ${similarity}`);
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
        const cell = element("span", "…");
        details(i).then(({ contexts, partners }) => {
          if (contexts.length) cell.replaceChildren(context(contexts[0], true));
          else cell.textContent = partners.map(([s, f, c]) => `${s}:${f} (${c})`).join("  ") || "–";
        });
        return cell;
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

  const table = document.querySelector("#features table");
  const line = document.querySelector("#chosen");
  const choose = pagedTable({
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

  async function search() {
    const words = byId("search").value.trim().toLowerCase();
    if (words && !isLabel(words) && !searched) {
      table.setAttribute("aria-busy", "true");
      byId("count").textContent = "Searching the contexts…";
      await texts();
      table.removeAttribute("aria-busy");
    }
    choose();
  }
  byId("search").oninput = search;

  function reset() {
    chosen = null;
    line.hidden = true;
    for (const id of ["search", "group", "seed"]) byId(id).value = "";
  }
  line.querySelector("button").onclick = () => { reset(); choose(); byId("search").focus(); };

  // Show the chosen features, open the row if there is only one, and move the focus.
  function openOne(focused) {
    const found = [];
    const words = byId("search").value;
    for (let i = 0; i < total && found.length < 2; i++) if (matches(i, words)) found.push(i);
    if (found.length === 1) open.add(found[0]);
    choose();
    byId("features").scrollIntoView();
    focused()?.focus({ preventScroll: true });
  }

  document.addEventListener("features", ({ detail: { figure, mark, words } }) => {
    if (!columns.marks[figure]) return;
    reset();
    chosen = { figure, mark };
    line.querySelector("span").textContent = `From ${words}.`;
    line.hidden = false;
    openOne(() => table.querySelector("tbody button"));
  });
})();
