"use strict";
// Everything of the data enters the page as text (textContent), never as markup.
const data = JSON.parse(document.getElementById("data").textContent);
const at = (id) => document.getElementById(id);
const make = (tag, text, kind) => {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  if (kind) node.className = kind;
  return node;
};
const count = (x) => x.toLocaleString("en-US");
const percent = (x) => (100 * x).toFixed(x < 0.001 && x > 0 ? 3 : 1) + "%";
const wordsOf = (input) => input.value.toLowerCase().split(/\s+/).filter(Boolean);

function facts(pairs) {
  const box = make("dl", undefined, "facts");
  for (const [name, value] of pairs) box.append(make("dt", name), make("dd", value));
  return box;
}

// A list on the left, what is chosen from it on the right.
function browse(list, detail, matches, found, line, show, most = 200) {
  const lines = found.slice(0, most).map((one) => {
    const made = line(one);
    made.addEventListener("click", () => choose(one, made));
    return made;
  });
  function choose(one, chosen) {
    for (const other of lines) other.classList.toggle("on", other === chosen);
    detail.replaceChildren(...show(one));
  }
  list.replaceChildren(...lines);
  matches.textContent = `${count(found.length)} prompts` + (found.length > most ? `, the first ${most} listed` : "");
  if (found.length) choose(found[0], lines[0]); else detail.replaceChildren();
}

// Tables: a click on a column sorts, words filter. What is no number sorts last.
const numberOf = (text) => { const found = parseFloat(text.replace(/,/g, "")); return Number.isNaN(found) ? -Infinity : found; };
function sortable(table) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, i) => {
    if (head.classList.contains("barcell")) return;
    head.addEventListener("click", () => {
      const numbers = head.classList.contains("n");
      const down = head.hasAttribute("aria-sort") ? head.getAttribute("aria-sort") !== "descending" : numbers;
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const key = (row) => (numbers ? numberOf(row.cells[i].textContent) : row.cells[i].textContent.toLowerCase());
      const sign = down ? -1 : 1;
      const rows = [...body.rows].map((row) => [key(row), row]);
      rows.sort(([a], [b]) => sign * (a < b ? -1 : a > b ? 1 : 0));
      body.append(...rows.map(([, row]) => row));
    });
  });
}
function filterable(table) {
  const rows = [...table.tBodies[0].rows];
  if (rows.length < 10) return;
  const input = make("input");
  input.type = "search";
  input.placeholder = "Filter by any words of a line";
  const shown = make("span", "", "dim");
  input.addEventListener("input", () => {
    const words = wordsOf(input);
    let left = 0;
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
      left += !row.hidden;
    }
    shown.textContent = ` ${count(left)} of ${count(rows.length)}`;
  });
  const line = make("p");
  line.append(input, shown);
  table.parentNode.before(line);
}

for (const table of document.querySelectorAll("table.sorted")) { sortable(table); filterable(table); }

// The browser of answers: by task, by outcome ([name, test] each) and by words of what `textOf` gives.
function browseAnswers(all, outcomes, textOf, line, show) {
  const fill = (select, names) => select.replaceChildren(...names.map((name, i) => { const made = make("option", name); made.value = i; return made; }));
  function list() {
    const words = wordsOf(at("search"));
    const task = at("of-task").value - 1;
    const [, fits] = outcomes[at("outcome").value];
    const found = all.filter((one) => {
      if ((task >= 0 && one.task !== task) || !fits(one)) return false;
      const text = words.length ? textOf(one).toLowerCase() : "";
      return words.every((word) => text.includes(word));
    });
    browse(at("list"), at("answer"), at("matches"), found, line, show);
  }
  fill(at("of-task"), ["all tasks", ...data.tasks]);
  fill(at("outcome"), outcomes.map(([name]) => name));
  for (const [id, kind] of [["search", "input"], ["of-task", "change"], ["outcome", "change"]]) at(id).addEventListener(kind, list);
  for (const row of document.querySelectorAll("#tasks tbody tr")) {
    const name = data.tasks.find((task) => `.${row.cells[0].textContent}`.endsWith(`.${task}`));
    row.cells[0].addEventListener("click", () => {
      at("of-task").value = data.tasks.indexOf(name) + 1;
      list();
      location.hash = "answers";
    });
  }
  list();
}
