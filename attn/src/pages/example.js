// The page: steps to turn, matrices to point at, numbers to change.

const example = JSON.parse(byId("data").textContent);
const copyOf = (matrix) => matrix.map((row) => [...row]);
/** What the reader can change: the matrices, a translation, another last word, and how attention is computed. */
const original = () => ({
  ...Object.fromEntries(["x", "wq", "wk", "wv"].map((kind) => [kind, copyOf(example[kind])])),
  t: [...example.translation],
  other: example.x.at(-1).map((value, k) => [-3, 2, 1, -1][k % 4] - value),
  scale: "one",
  causal: true,
});

/** Larger numbers would make sums that nobody can follow. */
const LARGEST = 1000;

const state = original();
/** All matrices by name, computed anew after each change. */
let all;
/** What is written again after each change. */
const writers = [];

function refresh() {
  const result = compute(state);
  all = { ...state, ...result, masked: withMask(result.scores, state.causal) };
  for (const write of writers) write();
  byId("reset").disabled = JSON.stringify(state) === JSON.stringify(original()) && !document.querySelector("[aria-invalid]");
}

function change(what) {
  Object.assign(state, what);
  refresh();
}

// ---- matrices

const KINDS = {
  x: { name: "X", row: "x", box: true },
  wq: { name: "W<sup>Q</sup>", box: true },
  wk: { name: "W<sup>K</sup>", box: true },
  wv: { name: "W<sup>V</sup>", box: true },
  q: { name: "Q", row: "q" },
  k: { name: "K", row: "k" },
  v: { name: "V", row: "v" },
  scores: { name: "Scores", row: "q", column: "k" },
  masked: { name: "Masked scores", row: "q", column: "k" },
  weights: { name: "Weights <i>α</i>", row: "a", column: "v" },
  output: { name: "A", row: "a" },
};

const textOf = (html) => element("span", { innerHTML: html }).textContent;

/** A table of `cell(i, j)` nodes with its labels. `row` and `column` give the HTML of a label; both are optional. */
function labelledTable({ name, rows, columns, row, column, cell, className = "matrix" }) {
  const heading = (scope, html) => element("th", { scope, innerHTML: html });
  const head = Array.from({ length: columns }, (_, j) => heading("col", column?.(j) ?? `${j + 1}`));
  const line = (_, i) => {
    const cells = Array.from({ length: columns }, (_, j) => element("td", {}, cell(i, j)));
    return element("tr", {}, heading("row", row?.(i) ?? `${i + 1}`), ...cells);
  };
  return element(
    "table",
    { className },
    element("caption", { innerHTML: name }),
    element("thead", {}, element("tr", {}, element("td"), ...head)),
    element("tbody", {}, ...Array.from({ length: rows }, line)),
  );
}

/** The number that is written, with a decimal point or comma; NaN where there is none, or too large a one. */
function readNumber(text) {
  const written = text.trim().replace("−", "-").replace(",", ".");
  const value = /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i.test(written) ? Number(written) : NaN;
  return Math.abs(value) <= LARGEST ? value : NaN;
}

const isRefused = (box) => box.getAttribute("aria-invalid") === "true";

/**
 * A box for a number; `take` gets each new one. What is no number stays and is marked until it is mended; meanwhile the number
 * from before counts. The box is one of text: one of numbers drops commas and letters silently, and an iPhone's keyboard for
 * decimals has no minus.
 */
function numberBox(label, value, take) {
  const box = element("input", { type: "text", size: 1, autocomplete: "off", "aria-label": label });
  let before = value();
  const fit = () => box.style.setProperty("--length", Math.min(box.value.length, 24));
  const show = () => {
    if (document.activeElement === box || isRefused(box)) return;
    box.value = String(value());
    fit();
  };
  box.addEventListener("input", () => {
    const number = readNumber(box.value);
    if (Number.isNaN(number)) box.setAttribute("aria-invalid", "true");
    else box.removeAttribute("aria-invalid");
    fit();
    take(Number.isNaN(number) ? before : number);
  });
  box.addEventListener("blur", show);
  box.addEventListener("focus", () => {
    before = value();
    box.select();
  });
  writers.push(show);
  return box;
}

/** A table of boxes: one stop of the Tab key, and beneath it what is written there and refused. */
function withBoxes(table) {
  const cells = cellsOf(table);
  moveByArrows(cells);
  table.addEventListener("focusin", (event) => stopAt(cells, event.target));
  stopAt(cells, cells[0][0].firstChild);
  const said = element("p", { className: "refused small", role: "alert" });
  const tell = () => {
    // A sign is the beginning of a number.
    const isBegun = (box) => document.activeElement === box && /^[-−+]?[.,]?$/.test(box.value.trim());
    const refused = [...table.querySelectorAll("input")].filter((box) => isRefused(box) && !isBegun(box));
    const texts = refused.map((box) => (box.value.trim() ? `“${box.value.trim()}”` : "an empty box")).join(", ");
    const text = texts && `Refused: ${texts}. Write a number from −${LARGEST} to ${LARGEST}; until then the old one counts.`;
    if (said.textContent === text) return;
    said.textContent = text;
    if (text) said.scrollIntoView({ block: "nearest" });
  };
  table.addEventListener("focusout", tell);
  writers.push(tell);
  return element("div", {}, table, said);
}

const cellsOf = (table) => [...table.tBodies[0].rows].map((row) => [...row.cells].slice(1));

/** A matrix by its kind: boxes, buttons that call `choose(i, j)`, or numbers. */
function matrix(kind, { choose, words }) {
  const { name, row, column: above, box } = KINDS[kind];
  const [rows, columns] = [all[kind].length, all[kind][0].length];
  const cell = (i, j) => {
    if (choose) return element("button", { type: "button", onclick: () => choose(i, j) });
    if (!box) return element("span");
    const take = (value) => change({ [kind]: all[kind].map((row, r) => row.map((old, c) => (r === i && c === j ? value : old))) });
    return numberBox(`${textOf(name)}, row ${i + 1}, column ${j + 1}`, () => state[kind][i][j], take);
  };
  const rowLabel = row && ((i) => (words ? `${words[i]} ` : "") + letter(row, i));
  const node = labelledTable({ name, rows, columns, row: rowLabel, column: above && ((j) => letter(above, j)), cell });
  const cells = cellsOf(node);
  const write = () => {
    const format = formatter(all[kind]);
    if (kind === "masked") node.caption.textContent = state.causal ? name : "Scores, not masked";
    cells.forEach((line, i) => line.forEach((td, j) => {
      const value = all[kind][i][j];
      if (box) td.classList.toggle("changed", value !== example[kind][i][j]);
      else if (kind === "weights") writeShare(td, value, i, j, format);
      else td.firstChild.textContent = format(value);
      if (kind === "masked") td.classList.toggle("hidden-score", isHidden(i, j));
    }));
  };
  writers.push(write);
  document.addEventListener("themechange", write);
  return { node: box ? withBoxes(node) : node, cells };
}

/** Whether the mask hides word `j` from word `i`. */
const isHidden = (i, j) => state.causal && j > i;

/** Colours a share; one that the mask makes 0 is a dash. */
function writeShare(td, share, i, j, format) {
  td.firstChild.textContent = isHidden(i, j) ? "–" : shareText(share, format);
  td.classList.toggle("hidden-score", isHidden(i, j));
  [td.style.backgroundColor, td.style.color] = isHidden(i, j) ? ["", ""] : colours(share);
}

/** A matrix and the operator before it, which stay together where lines break. */
const withOperator = (operator, node) =>
  element("div", { className: "operand" }, operator ? element("span", { className: "operator" }, operator) : null, node);

// ---- equations: matrices of which the last is the result; its chosen number shows what it is made of

function buildEquation(place) {
  const parts = place.dataset.matrices.split(" ");
  const isResult = place.dataset.chosen !== undefined;
  let chosen = isResult ? place.dataset.chosen.split(" ").map(Number) : null;
  const why = element("div", { className: "why", "aria-live": "polite" });
  const matrices = {};
  const words = place.dataset.words?.split(" ");
  const choose = (i, j) => {
    chosen = [i, j];
    explain();
  };

  const explain = () => {
    const { marks, words, sum } = explanations[parts.at(-1)](all, ...chosen);
    for (const { cells } of Object.values(matrices)) {
      for (const td of cells.flat()) td.classList.remove("first", "second", "chosen");
    }
    for (const [kind, what, at, which] of marks) {
      const { cells } = matrices[kind];
      const marked = { row: () => cells[at], column: () => column(cells, at), cell: () => [cells[at[0]][at[1]]] }[what]();
      for (const td of marked) td.classList.add(which);
    }
    const { cells } = matrices[parts.at(-1)];
    const td = cells[chosen[0]][chosen[1]];
    td.classList.add("chosen");
    for (const other of cells.flat()) other.firstChild.setAttribute("aria-pressed", String(other === td));
    stopAt(cells, td.firstChild);
    why.innerHTML = `<p class="muted small">${words}</p><p>${sum}</p>`;
  };

  for (const [at, part] of parts.entries()) {
    if (!(part in KINDS)) continue;
    matrices[part] = matrix(part, { choose: isResult && at === parts.length - 1 ? choose : null, words });
    const operator = parts[at - 1] in KINDS ? null : parts[at - 1];
    place.append(withOperator(operator, matrices[part].node));
  }
  if (!isResult) return;
  writers.push(explain);
  watchCells(matrices[parts.at(-1)].cells, choose);
  place.after(why);
  if (place.dataset.printed) place.parentNode.append(printedBeside(place.dataset.printed));
}

/** Pointing at and focusing the buttons of a result. */
function watchCells(cells, choose) {
  moveByArrows(cells);
  cells.forEach((line, i) => line.forEach((td, j) => {
    td.addEventListener("pointerenter", () => choose(i, j));
    td.addEventListener("focusin", () => choose(i, j));
  }));
}

/** Makes `node` the one button or box among `cells` at which the Tab key stops. */
function stopAt(cells, node) {
  for (const td of cells.flat()) td.firstChild.tabIndex = td.firstChild === node ? 0 : -1;
}

/** Moves from cell to cell by arrow keys: out of a box, where its caret can go no further. */
function moveByArrows(cells) {
  const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
  const isInside = ({ key, target: { value, selectionStart, selectionEnd } }) =>
    (key === "ArrowLeft" && selectionStart > 0) || (key === "ArrowRight" && selectionEnd < value?.length);
  cells.forEach((line, i) => line.forEach((td, j) => {
    td.addEventListener("keydown", (event) => {
      const isOther = event.altKey || event.ctrlKey || event.metaKey || event.shiftKey;
      const move = isOther || isInside(event) ? undefined : moves[event.key];
      if (!move) return;
      event.preventDefault();
      cells[i + move[0]]?.[j + move[1]]?.firstChild.focus();
    });
  }));
}

// ---- the numbers that the chapter prints

/** What each result depends on: where that has changed, the chapter has nothing to compare with. */
const MADE_OF = {
  q: ["x", "wq"],
  k: ["x", "wk"],
  v: ["x", "wv"],
  scores: ["x", "wq", "wk", "scale"],
  weights: ["x", "wq", "wk", "scale", "causal"],
  output: ["x", "wq", "wk", "wv", "scale", "causal"],
};

function openPrinted(open) {
  for (const node of document.querySelectorAll("details.printed")) node.open = open;
}

/** What the chapter prints of a result, beside ours; struck through where it does not follow. */
function printedBeside(kind) {
  const rows = example.printed[kind];
  const ours = compute(original())[kind];
  const follows = (i, j) => Math.abs(ours[i][j] - rows[i][j]) < 0.005 + 1e-9;
  const cell = (i, j) => {
    if (rows[i].length <= j) return element("span", {}, "");
    const text = rows[i][j].toFixed(2);
    return element(follows(i, j) ? "span" : "s", {}, text);
  };
  const labels = [KINDS[kind].row, KINDS[kind].column].map((label) => label && ((i) => letter(label, i)));
  const [row, above] = labels;
  const columns = Math.max(...rows.map((row) => row.length));
  const table = (name, cell) =>
    labelledTable({ name, rows: rows.length, columns, row, column: above, cell, className: "matrix small" });
  const places = rows.flatMap((row, i) => row.map((_, j) => [i, j]));
  const wrong = places.filter(([i, j]) => !follows(i, j)).length;
  const tables = element("div", { className: "equation" }, table("As printed", cell));
  if (kind === "scores") {
    const from = (i, j) => dot(example.printed.q[i], example.printed.k[j]).toFixed(2);
    tables.append(table("<i>q</i> · <i>k</i>", (i, j) => element("span", {}, j <= i ? from(i, j) : "")));
  }
  const numbers = `of the ${places.length} numbers that the chapter prints here`;
  const which = wrong === places.length ? `None ${numbers} follows` : `${wrong} ${numbers} ${wrong === 1 ? "does" : "do"} not follow`;
  const alone = kind === "scores" ? " Nor do they follow from the queries and keys that it prints, whose products are on the right." : "";
  const node = element(
    "details",
    { className: "printed" },
    element("summary", {}, "What the chapter prints"),
    element("p", { className: "small" }, `${which} from its own matrices (struck through). Trust those above.${alone}`),
    tables,
  );
  // Opened or closed once, it is so at every step.
  node.addEventListener("toggle", () => openPrinted(node.open));
  const isOriginal = (key) => JSON.stringify(state[key]) === JSON.stringify(original()[key]);
  writers.push(() => { node.hidden = !MADE_OF[kind].every(isOriginal); });
  return node;
}
