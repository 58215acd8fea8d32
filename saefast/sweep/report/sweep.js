(async () => {
  const heads = document.querySelectorAll("#cells th");
  const columns = await unpacked("results.parquet");
  if (columns === null) return;
  const total = columns.cell.length;
  const names = Array.from(heads, (head) => head.dataset.column);
  const axes = names.filter((name) => name.startsWith("axis-"));
  const filtered = axes.filter((name) => byId(name));
  const word = (axis, i) => columns[axis.replace("axis", "names")][columns[axis][i]];
  const isMeasure = (name) => name.startsWith("measure-");
  const keys = Object.fromEntries(names.map((name) => [
    name,
    isMeasure(name) ? (i) => columns[name][i]?.[0] ?? null : (i) => columns[name][i],
  ]));
  keys.cell = (i) => i; // the order of the grid

  function matches(i, words) {
    const status = byId("status").value;
    if (status && columns.status[i] !== status) return false;
    for (const name of filtered) {
      const wanted = byId(name).value;
      if (wanted && word(name, i) !== wanted) return false;
    }
    return !words || `${columns.cell[i]} ${columns.reason[i]}`.toLowerCase().includes(words);
  }

  function cell(i) {
    if (!columns.link[i]) return columns.cell[i];
    const link = element("a", columns.cell[i]);
    link.href = columns.link[i];
    return link;
  }

  function status(i) {
    const shownCell = element("span", columns.status[i], columns.status[i]);
    if (columns.reason[i]) shownCell.append(element("span", columns.reason[i], "reason"));
    return shownCell;
  }

  function measured([value, low, high]) {
    const shownCell = element("span", shown(value));
    if (low !== undefined) shownCell.append(element("span", ` ${shown(low)}–${shown(high)}`, "range"));
    return shownCell;
  }

  function row(i) {
    const made = element("tr");
    for (const name of names) {
      const td = element("td");
      if (name === "cell") td.append(cell(i));
      else if (name === "status") td.append(status(i));
      else if (axes.includes(name)) td.append(word(name, i));
      else if (isMeasure(name)) td.append(columns[name][i] ? measured(columns[name][i]) : "–");
      else td.append(shown(columns[name][i]));
      made.append(td);
    }
    return made;
  }

  pagedTable({
    section: "cells",
    noun: "cells",
    total,
    keys,
    matches,
    elements: (i) => [row(i)],
    filters: ["status", ...filtered],
    falling: names.filter((name) => isMeasure(name) || name === "seconds"),
    first: "cell",
  });
})();
