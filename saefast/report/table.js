"use strict";
// Tables with search, filters, sorting and pages; see `paged_table` in document.py.
const byId = (id) => document.getElementById(id);
// A value far from 1 would be a long row of zeros.
const shown = (number, digits = 3) => {
  if (number === null) return "–";
  if (number !== 0 && Math.abs(number) < 1e-4) return number.toExponential(digits - 1);
  return Number(number.toPrecision(digits)).toString();
};

function element(name, text, kind) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (kind) made.className = kind;
  return made;
}

// Content of an element that `packed_rows` of document.py made.
async function unpack(id) {
  const bytes = Uint8Array.from(atob(byId(id).textContent), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

// Columns of the table, or null where the browser cannot unpack them.
async function unpacked(file) {
  try {
    return await unpack("rows");
  } catch (error) {
    byId("count").textContent = "This browser cannot unpack the table (use one from 2023 or " +
      `newer); its rows are in ${file}.`;
    return null;
  }
}

// `keys` has a function of a row's number for each column that can be sorted, `matches` decides on
// rows for the lower-case words of the search, `elements` makes the rows of the page.
function pagedTable({ section, noun, total, keys, matches, elements, filters, falling, first }) {
  const PAGE = 25;
  const table = document.querySelector(`#${section} table`);
  const body = table.querySelector("tbody");
  const heads = table.querySelectorAll("th");
  let sorted = { name: first, descending: false };
  let page = 0;
  let order = [];

  function choose() {
    const words = byId("search").value.trim().toLowerCase();
    order = [];
    for (let i = 0; i < total; i++) if (matches(i, words)) order.push(i);
    const key = keys[sorted.name], sign = sorted.descending ? -1 : 1;
    const known = order.map((i) => [key(i), i]);
    known.sort(([a, i], [b, j]) => {
      // Unknown values come last in both directions.
      if (a === null || b === null) return (a === null) - (b === null) || i - j;
      return a < b ? -sign : a > b ? sign : i - j;
    });
    order = known.map(([, i]) => i);
    page = 0;
    draw();
  }

  function draw() {
    const pages = Math.max(1, Math.ceil(order.length / PAGE));
    body.replaceChildren();
    for (const i of order.slice(page * PAGE, (page + 1) * PAGE)) body.append(...elements(i));
    byId("count").textContent = `${order.length.toLocaleString("en")} of ${total.toLocaleString("en")} ${noun}`;
    byId("place").textContent = `page ${page + 1} of ${pages.toLocaleString("en")}`;
    byId("previous").disabled = page === 0;
    byId("next").disabled = page + 1 >= pages;
    for (const head of heads) {
      const mine = head.dataset.column === sorted.name;
      head.setAttribute("aria-sort", mine ? (sorted.descending ? "descending" : "ascending") : "none");
    }
  }

  document.querySelector("form.filters").onsubmit = (event) => event.preventDefault();
  for (const id of ["search", ...filters]) byId(id).oninput = choose;
  byId("previous").onclick = () => { page--; draw(); };
  byId("next").onclick = () => { page++; draw(); };
  for (const head of heads) {
    head.querySelector("button").onclick = () => {
      const name = head.dataset.column, same = sorted.name === name;
      // Numbers are sorted in descending order first.
      sorted = { name, descending: same ? !sorted.descending : falling.includes(name) };
      choose();
    };
  }
  choose();
  return choose;
}
