// The report on weights: spectra, norms, change and gradients. Layers and heads are counted from 1 where they are shown.

const report = JSON.parse(byId("data").textContent);
const MATRICES = { qk: "where it looks", vo: "what it writes" };
const NUMBERS = {
  frobenius: "The size of the matrix: its Frobenius norm, the root of the sum of the squares of all its numbers.",
  spectral: "The most by which it can stretch anything: its spectral norm, the largest singular value.",
  rank: "In about how many directions it acts: its stable rank, (size / strongest)².",
};
/** What tensors are, in plain words. */
const WORDS = {
  token_embedding: "embedding of tokens",
  position_embedding: "embedding of positions",
  attention_norm: "normalisation before attention",
  "attention.q_proj": "queries",
  "attention.k_proj": "keys",
  "attention.v_proj": "values",
  "attention.q_norm": "normalisation of queries",
  "attention.k_norm": "normalisation of keys",
  "attention.o_proj": "attention’s output",
  mlp_norm: "normalisation before feed-forward",
  "mlp.gate_proj": "feed-forward, gate",
  "mlp.up_proj": "feed-forward, first matrix",
  "mlp.down_proj": "feed-forward, last matrix",
  norm: "normalisation before the output",
  head: "output matrix",
};
const state = { matrix: "qk", number: "frobenius" };

/** Three digits that count. */
function digits(value) {
  if (value === 0) return "0";
  if (value >= 1000 && value < 100_000) return grouped(Math.round(value));
  if (value >= 0.001 && value < 1000) return value.toPrecision(3);
  return value.toExponential(1).replace("e+", "e").replace("-", "−");
}

const words = (kind) => WORDS[kind.replace(/\.(weight|bias)$/, "")] + (kind.endsWith(".bias") ? ", bias" : "");

// ---- spectra

const start = report.heads_at_start;
const all = [report.heads, start ?? []].flat(2).flatMap((head) => [head.qk, head.vo]);
const widest = Math.max(1, ...all.map((matrix) => matrix.values.length));
const largest = Math.max(...all.map((matrix) => matrix.spectral));
/** Decades below the largest value that are drawn: what is smaller does not matter beside it. */
const DECADES = 4;
const top = largest > 0 ? Math.log10(largest) : 0;
/** Between 0, at the top, and 1. */
const depth = (value) => (value > 0 ? clamp((top - Math.log10(value)) / DECADES, 0, 1) : 1);

/** The spectra of a head in a frame of this size, with those before training where they are known and not 0. */
function curves(layer, head, width, height) {
  const before = start ? spectra(start[layer][head], width, height, "start") : [];
  return [...before, ...spectra(report.heads[layer][head], width, height)];
}

/** Lines, and dots where a line would be a point. */
function spectra(head, width, height, more = "", inset = 3) {
  const x = (i) => inset + (widest > 1 ? (i / (widest - 1)) * (width - 2 * inset) : (width - 2 * inset) / 2);
  const y = (value) => inset + depth(value) * (height - 2 * inset);
  const drawn = Object.keys(MATRICES).filter((kind) => !more || head[kind].spectral > 0);
  return drawn.map((kind) => {
    const values = head[kind].values;
    const name = more ? `${kind} ${more}` : kind;
    if (values.length === 1) return svgElement("circle", { class: name, cx: x(0), cy: y(values[0]), r: 3 });
    const points = values.map((value, i) => `${x(i).toFixed(1)},${y(value).toFixed(1)}`).join(" ");
    return svgElement("polyline", { class: `line ${name}`, points });
  });
}

function multiple(head, layer, i) {
  const picture = svgElement("svg", { viewBox: "0 0 100 60", preserveAspectRatio: "none", "aria-hidden": "true" },
    ...curves(layer, i, 100, 60));
  const said = `Layer ${layer + 1}, head ${i + 1}: acts in about ${digits(head.qk.rank)} directions where it looks, `
    + `${digits(head.vo.rank)} in what it writes`;
  return element("button", {
    type: "button", className: "multiple", "aria-label": said, title: said, "data-head": `${layer} ${i}`,
    onclick: () => choose(layer, i),
  }, picture, `head ${i + 1}`);
}

function choose(layer, head) {
  for (const button of document.querySelectorAll(".multiple")) {
    button.setAttribute("aria-pressed", String(button.dataset.head === `${layer} ${head}`));
  }
  byId("head").replaceChildren(large(layer, head));
}

/** A head with axes and its numbers. */
function large(layer, head) {
  const [left, right, above, below] = [44, 330, 8, 190];
  const grid = [];
  for (let decade = Math.ceil(top - DECADES); decade <= top; decade++) {
    const y = above + 3 + depth(10 ** decade) * (below - above - 6);
    grid.push(svgElement("line", { class: "grid", x1: left, x2: right, y1: y, y2: y }));
    const label = Math.abs(decade) <= 3 ? String(Number((10 ** decade).toPrecision(1))) : `1e${decade}`;
    grid.push(svgElement("text", { x: left - 6, y: y + 4, "text-anchor": "end" }, label));
  }
  const inner = svgElement("svg", { x: left, y: above, width: right - left, height: below - above },
    ...curves(layer, head, right - left, below - above));
  const labels = [[left, "start", "direction 1"], [right, "end", `direction ${widest}`]].map(([x, anchor, text]) =>
    svgElement("text", { x, y: below + 16, "text-anchor": anchor }, text));
  const picture = svgElement("svg", { viewBox: "0 0 340 212", role: "img", "aria-label": "The head's singular values" },
    ...grid, inner, ...labels);
  const rows = Object.entries(MATRICES).map(([kind, name]) => {
    const { frobenius, spectral, rank } = report.heads[layer][head][kind];
    return element("tr", {}, element("th", { scope: "row", className: kind }, name),
      ...[frobenius, spectral, rank].map((value) => element("td", {}, digits(value))));
  });
  const heading = element("tr", {}, ...["", "size", "strongest", "directions"].map((name) => element("th", { scope: "col" }, name)));
  const table = element("table", { className: "numbers small" }, element("thead", {}, heading), element("tbody", {}, ...rows));
  return element("div", {}, element("h3", {}, `Layer ${layer + 1}, head ${head + 1}`),
    element("div", { className: "large" }, picture, element("div", { className: "scroll" }, table)));
}

// ---- heat maps

/** The largest of the numbers in fields of `heat`. */
const most = (cells) => Math.max(0, ...cells.flat().map((cell) => cell.value ?? 0));

/** A table of fields coloured up to `full`: `cells[row][column]` is `{value, title}`, or a string for a field without a number. */
function heat(caption, columns, rows, cells, full = most(cells), hue = "blue") {
  const field = (cell) => {
    if (typeof cell === "string") return element("td", { className: "none" }, cell);
    const node = element("td", { title: cell.title }, digits(cell.value));
    const [background, ink] = colours(full > 0 ? cell.value / full : 0, hue);
    Object.assign(node.style, { background, color: ink });
    return node;
  };
  const head = element("tr", {}, element("td", {}), ...columns.map((name) => element("th", { scope: "col" }, name)));
  const body = rows.map((name, i) => element("tr", {}, element("th", { scope: "row", className: "name" }, ...[name].flat()), ...cells[i].map(field)));
  return element("table", { className: "heat" }, element("caption", { className: "visually-hidden" }, caption),
    element("thead", {}, head), element("tbody", {}, ...body));
}

const layerNames = report.heads.map((_, layer) => `layer ${layer + 1}`);

function drawNorms() {
  for (const key of ["matrix", "number"]) {
    for (const button of document.querySelectorAll(`button[data-${key}]`)) {
      button.setAttribute("aria-pressed", String(button.dataset[key] === state[key]));
    }
  }
  const meaning = `Shown: ${MATRICES[state.matrix]}. ${NUMBERS[state.number]}`;
  byId("norms-meaning").textContent = meaning;
  const cells = report.heads.map((heads, layer) => heads.map((head, i) => {
    const value = head[state.matrix][state.number];
    return { value, title: `Layer ${layer + 1}, head ${i + 1}: ${digits(value)}` };
  }));
  const columns = report.heads[0].map((_, i) => `head ${i + 1}`);
  const hue = state.matrix === "qk" ? "blue" : "orange";
  byId("norms-table").replaceChildren(heat(`${meaning} By layer and head.`, columns, layerNames, cells, most(cells), hue));
}

/** What a tensor is, and its name in the layer. */
const named = (kind) => [words(kind), " ", element("code", {}, kind.replace(/^(attention|mlp)\./, "").replace(/\.weight$/, ""))];

/** The change of each kind of tensor by layers, and of the tensors outside them, on one scale. */
function changes() {
  const layers = report.heads.map((_, layer) => report.tensors.filter((tensor) => tensor.layer === layer));
  const outside = report.tensors.filter((tensor) => tensor.layer === null);
  const cell = ({ name, change }) => (change === null ? "was 0" : { value: change, title: `${name}: ${digits(change)}` });
  const inside = layers[0].map((_, kind) => layers.map((tensors) => cell(tensors[kind])));
  const others = outside.map((tensor) => [cell(tensor)]);
  const full = most([inside, others].flat());
  return [
    heat("Change since the start, by layer", layerNames, layers[0].map(({ kind }) => named(kind)), inside, full),
    heat("Change since the start, outside the layers", ["outside the layers"], outside.map(({ kind }) => named(kind)), others, full),
  ];
}

/** Says why something is missing, if it is. */
function missing(known, id, what) {
  const reason = known.missing;
  byId(id).hidden = reason === undefined;
  byId(id).textContent = reason === undefined ? "" : `${what} is not known: ${reason}`;
  return reason !== undefined;
}

function drawChange() {
  if (missing(report.start, "change-missing", "Where the weights started")) return;
  byId("change-zero").hidden = report.tensors.every(({ change }) => change !== null);
  byId("change-table").replaceChildren(...changes());
}

// ---- gradient flow

const ROOT = (numbers) => Math.sqrt(numbers.reduce((sum, x) => sum + x * x, 0));

/** The places on the way back, from the loss to the embedding: what is there, with the norm of its gradient, NaN if not finite. */
function way() {
  const norm = (tensors) => ROOT(tensors.map((tensor) => tensor.gradient ?? NaN));
  const outside = (...names) => report.tensors.filter(({ layer, kind }) => layer === null && names.some((name) => kind.startsWith(name)));
  // The embedding may be the output's matrix too.
  const isTied = outside("head").length === 0;
  const places = [{ place: "output", parts: [[isTied ? "normalisation" : "", norm(outside("norm", "head"))]] }];
  for (let layer = report.layers - 1; layer >= 0; layer--) {
    const tensors = report.tensors.filter((tensor) => tensor.layer === layer);
    const isMlp = ({ kind }) => kind.startsWith("mlp");
    const parts = [["feed-forward", norm(tensors.filter(isMlp))], ["attention", norm(tensors.filter((tensor) => !isMlp(tensor)))]];
    places.push({ place: `layer ${layer + 1}`, parts });
  }
  places.push({ place: "embedding", parts: [[isTied ? "also the output’s matrix" : "", norm(outside("token", "position"))]] });
  return places;
}

function drawFlow() {
  if (missing(report.gradients, "flow-missing", "The gradient")) return;
  byId("flow-source").textContent = `The size (norm) of the gradient of the ${report.gradients.is}.`;
  const places = way();
  const longest = Math.max(0, ...places.flatMap(({ parts }) => parts.map(([, norm]) => norm || 0)));
  const bar = ([name, norm]) => {
    const isFinite = Number.isFinite(norm);
    const fill = element("div", { className: "fill" });
    fill.style.width = `${isFinite && longest > 0 ? (100 * norm) / longest : 0}%`;
    return element("div", { className: "bar" }, element("div", { className: "track" }, fill),
      element("span", { className: isFinite ? "" : "failed" }, `${isFinite ? digits(norm) : "not finite"} ${name}`));
  };
  const rows = places.flatMap(({ place, parts }, i) => [
    ...(i ? [element("div", { className: "arrow", "aria-hidden": "true" }, "↓")] : []),
    element("div", { className: "place" }, place), element("div", {}, ...parts.map(bar)),
  ]);
  byId("flow-bars").replaceChildren(element("div", { className: "flow" }, ...rows));
}

// ---- all numbers

function drawTensors() {
  const nothing = { change: report.start.is ? "was 0" : "–", gradient: report.gradients.is ? "not finite" : "–" };
  const cell = (tensor, key) => element("td", {}, tensor[key] === null ? nothing[key] : digits(tensor[key]));
  const heading = element("tr", {}, ...["tensor", "", "shape", "size", "change", "gradient"].map((name) => element("th", { scope: "col" }, name)));
  const rows = report.tensors.map((tensor) => element("tr", {}, element("th", { scope: "row" }, element("code", {}, tensor.name)),
    element("td", { className: "words" }, words(tensor.kind)), element("td", {}, tensor.shape.join(" × ")),
    ...["norm", "change", "gradient"].map((key) => cell(tensor, key))));
  byId("tensors").replaceChildren(element("table", { className: "numbers small" }, element("thead", {}, heading), element("tbody", {}, ...rows)));
}

// ---- start

byId("model").textContent = report.model;
byId("heads").replaceChildren(...report.heads.map((heads, layer) => element("div", { className: "layer" },
  element("div", { className: "small muted" }, layerNames[layer]),
  element("div", { className: "multiples", style: `max-width: ${8 * heads.length}rem` }, ...heads.map((head, i) => multiple(head, layer, i))))));
for (const key of ["matrix", "number"]) {
  for (const button of document.querySelectorAll(`button[data-${key}]`)) {
    button.addEventListener("click", () => {
      state[key] = button.dataset[key];
      drawNorms();
    });
  }
}
if (start) {
  const wasZero = start.flat().every(({ vo }) => vo.spectral === 0);
  byId("before").textContent = `The thin grey lines are the same heads before training${wasZero ? ": they wrote nothing then." : "."}`;
}
drawTensors();
drawFlow();
choose(0, 0);
// Also draws what has the theme's colours.
document.addEventListener("themechange", () => {
  drawNorms();
  drawChange();
});
themeButton(byId("theme"));
