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
