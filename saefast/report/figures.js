// Values of figures, shown where the pointer or the keyboard is, and the features of a mark.
(() => {
  const NEAR = 24, MANY_LINES = 6;
  const tip = document.createElement("div");
  tip.className = "tip";
  tip.setAttribute("role", "status");
  tip.hidden = true;
  document.body.append(tip);
  const svgElement = (name) => document.createElementNS("http://www.w3.org/2000/svg", name);
  const number = (value) => Number(value).toLocaleString("en", { maximumSignificantDigits: 4 });
  // A value far from 1 would be a long row of zeros.
  const shownValue = (value) =>
    value !== 0 && Math.abs(value) < 1e-4 ? value.toExponential(1) : number(value);

  // Above or below a shape, or beside a vertical line of values, which it must not cover.
  function tell(lines, box, beside) {
    tip.replaceChildren(...lines.map((line) => {
      const made = document.createElement("div");
      made.textContent = line;
      return made;
    }));
    tip.hidden = false;
    const width = tip.offsetWidth, height = tip.offsetHeight;
    const room = document.documentElement.clientWidth - width - 4;
    const right = box.right + 10 <= room ? box.right + 10 : box.left - width - 10;
    const left = beside ? right : box.left + box.width / 2 - width / 2;
    const above = box.top - height - 10;
    const top = beside ? (box.top + box.bottom - height) / 2 : above > 4 ? above : box.bottom + 10;
    tip.style.left = `${Math.max(Math.min(left, room), 4)}px`;
    tip.style.top = `${Math.max(Math.min(top, window.innerHeight - height - 4), 4)}px`;
  }

  function prepare(svg) {
    const figure = svg.closest("figure");
    const name = figure.id.replace(/^fig-/, "");
    const plot = svg.querySelector("g[data-x]");
    const shapes = new Map();
    // The browser's own hint would cover ours.
    for (const title of svg.querySelectorAll("title")) {
      const mark = title.parentElement;
      title.remove();
      shapes.set(mark, title.textContent);
    }
    const lines = [...svg.querySelectorAll("path[data-line]")].map((path) => ({
      name: path.dataset.line,
      at: (path.getAttribute("d").match(/-?[\d.]+ -?[\d.]+/g) || []).map((pair) => pair.split(" ").map(Number)),
      values: path.dataset.values.split(" ").map((pair) => pair.split(",").map(Number)),
    })).filter((line) => line.at.length);
    const cursor = svg.appendChild(svgElement("g"));
    cursor.setAttribute("class", "cursor");
    let here = null, armed = null, stop = -1;

    function leave() {
      tip.hidden = true;
      cursor.replaceChildren();
      if (here) here.classList.remove("pointed");
      here = null;
    }

    function onShape(mark, how) {
      leave();
      here = mark;
      mark.classList.add("pointed");
      const words = [shapes.get(mark)];
      if (mark.dataset.mark !== undefined && byId("features")) words.push(`${how}: show in the table`);
      tell(words, mark.getBoundingClientRect());
    }

    // All lines at one x, or the nearest line where there are many.
    function onLines(x, y) {
      leave();
      let found = lines.map((line) => {
        let best = 0;
        line.at.forEach(([at], i) => { if (Math.abs(at - x) < Math.abs(line.at[best][0] - x)) best = i; });
        return { line, best, px: line.at[best][0], py: line.at[best][1] };
      });
      const nearest = Math.min(...found.map(({ px }) => Math.abs(px - x)));
      if (!(nearest <= NEAR)) return;
      found = found.filter(({ px }) => Math.abs(px - x) <= nearest + 2);
      if (found.length > MANY_LINES) {
        const off = ({ py }) => Math.abs(py - y);
        found = [found.reduce((a, b) => (off(b) < off(a) ? b : a))];
      }
      for (const { px, py } of found) {
        const ring = svgElement("circle");
        ring.setAttribute("cx", px);
        ring.setAttribute("cy", py);
        ring.setAttribute("r", 5);
        cursor.append(ring);
      }
      const first = found[0].line.values[found[0].best][0];
      const words = found.map(({ line, best }) => `${line.name}: ${shownValue(line.values[best][1])}`);
      tell([`${plot.dataset.x}: ${shownValue(first)}`, ...words], cursor.getBoundingClientRect(), true);
    }

    function choose(mark) {
      if (mark.dataset.mark === undefined) return;
      const detail = {
        figure: name,
        mark: Number(mark.dataset.mark),
        words: `“${figure.querySelector("h3").textContent}”, ${shapes.get(mark)}`,
      };
      document.dispatchEvent(new CustomEvent("features", { detail }));
      tip.hidden = true;
    }

    function point(event) {
      const mark = event.target.closest("rect, circle, path, text, a");
      if (shapes.has(mark)) {
        if (here !== mark) onShape(mark, event.pointerType === "touch" ? "Touch again" : "Click");
        return;
      }
      if (!lines.length) { leave(); return; }
      const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
      onLines(at.x, at.y);
    }
    svg.addEventListener("pointermove", point);
    svg.addEventListener("pointerdown", point); // a finger may not move
    svg.addEventListener("pointerleave", (event) => { if (event.pointerType !== "touch") leave(); });
    svg.addEventListener("click", (event) => {
      const mark = event.target.closest("rect, circle, path");
      if (!shapes.has(mark)) { armed = null; return; }
      // A finger cannot point: its first touch shows the value.
      if (event.pointerType === "touch" && armed !== mark) { armed = mark; return; }
      choose(mark);
    });

    // Stops of the keyboard: marks in the order of drawing, then the lines from left to right.
    const xs = [...new Set(lines.flatMap((line) => line.at.map(([x]) => Math.round(x))))].sort((a, b) => a - b);
    const stops = [
      ...[...shapes.keys()].filter((mark) => mark.tagName !== "text").map((mark) => () => onShape(mark, "Enter")),
      ...xs.map((x) => () => onLines(x, 0)),
    ];
    if (!stops.length) return;
    svg.tabIndex = 0;
    svg.setAttribute("role", "group");
    svg.setAttribute("aria-roledescription", "figure with values; arrow keys move between them");
    svg.addEventListener("keydown", (event) => {
      const steps = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };
      if (event.key in steps) stop = Math.min(Math.max(stop + steps[event.key], 0), stops.length - 1);
      else if (event.key === "Home") stop = 0;
      else if (event.key === "End") stop = stops.length - 1;
      else if (event.key === "Enter" && here) { choose(here); return; }
      else if (event.key === "Escape") { leave(); return; }
      else return;
      event.preventDefault();
      stops[stop]();
    });
    svg.addEventListener("blur", leave);
  }

  for (const svg of document.querySelectorAll("figure .chart")) prepare(svg);
})();
