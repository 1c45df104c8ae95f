// The report on weights: spectra, norms, change and gradients. Layers and heads are counted from 1 where they are shown.

const report = JSON.parse(byId("data").textContent);
const MATRICES = { qk: "looks", vo: "writes" };
const NUMBERS = {
  frobenius: "The size of the matrix: its Frobenius norm, the root of the sum of the squares of all its numbers.",
  spectral: "The most by which it can stretch anything: its spectral norm, the largest singular value.",
  rank: "In how many directions it acts: its stable rank, (size / strongest)².",
};
const state = { layer: 0, head: 0, matrix: "qk", number: "frobenius" };

/** Three digits that count. */
function digits(value) {
  if (value === 0) return "0";
  if (value >= 1000 && value < 100_000) return grouped(Math.round(value));
  if (value >= 0.001 && value < 1000) return value.toPrecision(3);
  return value.toExponential(1).replace("e+", "e").replace("-", "−");
}

// ---- spectra

const all = report.heads.flat().flatMap((head) => [head.qk, head.vo]);
const widest = Math.max(1, ...all.map((matrix) => matrix.values.length));
const largest = Math.max(...all.map((matrix) => matrix.spectral));
/** Decades below the largest value that are drawn: what is smaller does not matter beside it. */
const DECADES = 4;
const top = largest > 0 ? Math.log10(largest) : 0;
/** Between 0, at the top, and 1. */
const depth = (value) => (value > 0 ? clamp((top - Math.log10(value)) / DECADES, 0, 1) : 1);

/** The spectra of a head in a frame of this size: lines, and dots where a line would be a point. */
function curves(head, width, height, inset = 3) {
  const x = (i) => inset + (widest > 1 ? (i / (widest - 1)) * (width - 2 * inset) : (width - 2 * inset) / 2);
  const y = (value) => inset + depth(value) * (height - 2 * inset);
  return Object.keys(MATRICES).flatMap((kind) => {
    const values = head[kind].values;
    if (values.length === 1) return [svgElement("circle", { class: kind, cx: x(0), cy: y(values[0]), r: 3 })];
    const points = values.map((value, i) => `${x(i).toFixed(1)},${y(value).toFixed(1)}`).join(" ");
    return [svgElement("polyline", { class: `line ${kind}`, points })];
  });
}

function multiple(head, layer, i) {
  const picture = svgElement("svg", { viewBox: "0 0 100 60", preserveAspectRatio: "none", "aria-hidden": "true" },
    ...curves(head, 100, 60));
  const said = `Layer ${layer + 1}, head ${i + 1}: acts in ${digits(head.qk.rank)} directions where it looks, `
    + `${digits(head.vo.rank)} in what it writes`;
  return element("button", {
    type: "button", className: "multiple", "aria-label": said, title: said, "data-head": `${layer} ${i}`,
    onclick: () => choose(layer, i),
  }, picture, `head ${i + 1}`);
}

function choose(layer, head) {
  Object.assign(state, { layer, head });
  for (const button of document.querySelectorAll(".multiple")) {
    button.setAttribute("aria-pressed", String(button.dataset.head === `${layer} ${head}`));
  }
  byId("head").replaceChildren(large(report.heads[layer][head]));
}

/** A head with axes and its numbers. */
function large(head) {
  const [left, right, above, below] = [44, 330, 8, 190];
  const grid = [];
  for (let decade = Math.ceil(top - DECADES); decade <= top; decade++) {
    const y = above + 3 + depth(10 ** decade) * (below - above - 6);
    grid.push(svgElement("line", { class: "grid", x1: left, x2: right, y1: y, y2: y }));
    const label = Math.abs(decade) <= 3 ? String(Number((10 ** decade).toPrecision(1))) : `1e${decade}`;
    grid.push(svgElement("text", { x: left - 6, y: y + 4, "text-anchor": "end" }, label));
  }
  const inner = svgElement("svg", { x: left, y: above, width: right - left, height: below - above },
    ...curves(head, right - left, below - above));
  const labels = [[left, "start", "direction 1"], [right, "end", `direction ${widest}`]].map(([x, anchor, text]) =>
    svgElement("text", { x, y: below + 16, "text-anchor": anchor }, text));
  const picture = svgElement("svg", { viewBox: "0 0 340 212", role: "img", "aria-label": "The head's singular values" },
    ...grid, inner, ...labels);
  const rows = Object.entries(MATRICES).map(([kind, name]) => {
    const { frobenius, spectral, rank } = head[kind];
    return element("tr", {}, element("th", { scope: "row", className: kind }, name),
      ...[frobenius, spectral, rank].map((value) => element("td", {}, digits(value))));
  });
  const heading = element("tr", {}, ...["", "size", "strongest", "directions"].map((name) => element("th", { scope: "col" }, name)));
  const table = element("table", { className: "numbers small" }, element("thead", {}, heading), element("tbody", {}, ...rows));
  return element("div", {}, element("h3", {}, `Layer ${state.layer + 1}, head ${state.head + 1}`),
    element("div", { className: "large" }, picture, element("div", { className: "scroll" }, table)));
}

// ---- heat maps

/** A table of coloured fields: `cells[row][column]` is `{value, title}`, a string for a field without a number, or null. */
function heat(caption, columns, rows, cells) {
  const values = cells.flat().filter((cell) => cell?.value !== undefined).map((cell) => cell.value);
  const most = Math.max(0, ...values);
  const field = (cell) => {
    if (cell === null) return element("td", {});
    if (typeof cell === "string") return element("td", { className: "none" }, cell);
    const node = element("td", { title: cell.title }, digits(cell.value));
    const [background, ink] = colours(most > 0 ? cell.value / most : 0);
    Object.assign(node.style, { background, color: ink });
    return node;
  };
  const head = element("tr", {}, element("td", {}), ...columns.map((name) => element("th", { scope: "col" }, name)));
  const body = rows.map((name, i) => element("tr", {}, element("th", { scope: "row" }, name), ...cells[i].map(field)));
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
  byId("norms-meaning").textContent = NUMBERS[state.number];
  const cells = report.heads.map((heads, layer) => heads.map((head, i) => {
    const value = head[state.matrix][state.number];
    return { value, title: `Layer ${layer + 1}, head ${i + 1}: ${digits(value)}` };
  }));
  const columns = report.heads[0].map((_, i) => `head ${i + 1}`);
  const caption = `${NUMBERS[state.number]} By layer and head.`;
  byId("norms-table").replaceChildren(heat(caption, columns, layerNames, cells));
}

/** Kinds of tensors by layers, then the tensors outside the layers: `number` of each, or `nothing` where it is null. */
function byLayer(caption, number, nothing) {
  const inLayers = report.tensors.filter((tensor) => tensor.layer !== null);
  const outside = report.tensors.filter((tensor) => tensor.layer === null);
  const kinds = [...new Set(inLayers.map((tensor) => tensor.kind))];
  const place = new Map(inLayers.map((tensor) => [`${tensor.layer} ${tensor.kind}`, tensor]));
  const cell = (tensor) => {
    const value = tensor[number];
    return value === null ? nothing : { value, title: `${tensor.name}: ${digits(value)}` };
  };
  const rows = kinds.map((kind) => layerNames.map((_, layer) => cell(place.get(`${layer} ${kind}`))));
  // In the same table, so that all have one scale.
  const others = outside.map((tensor) => [cell(tensor), ...layerNames.slice(1).map(() => null)]);
  const short = (kind) => kind.replace(/\.weight$/, "");
  return heat(caption, layerNames, [...kinds, ...outside.map(({ kind }) => kind)].map(short), [...rows, ...others]);
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
  byId("change-table").replaceChildren(byLayer("Change since the start", "change", "from 0"));
}

// ---- gradient flow

const ROOT = (numbers) => Math.sqrt(numbers.reduce((sum, x) => sum + x * x, 0));

/** The places on the way back, from the loss to the embedding: what is there, with the norm of its gradient. */
function way() {
  const norm = (tensors) => ROOT(tensors.map((tensor) => tensor.gradient ?? 0));
  const outside = (begins) => report.tensors.filter(({ layer, kind }) => layer === null && begins.some((name) => kind.startsWith(name)));
  const parts = (tensors, names) => names.map(([name, className, is]) => ({ name, className, norm: norm(tensors.filter(is)) }));
  const places = [];
  const last = outside(["norm", "head"]);
  if (last.length) places.push({ place: "output", parts: [{ name: "norm and head", className: "attention", norm: norm(last) }] });
  for (let layer = report.layers - 1; layer >= 0; layer--) {
    const tensors = report.tensors.filter((tensor) => tensor.layer === layer);
    places.push({
      place: `layer ${layer + 1}`,
      parts: parts(tensors, [
        ["feed-forward", "mlp", ({ kind }) => kind.startsWith("mlp")],
        ["attention", "attention", ({ kind }) => !kind.startsWith("mlp")],
      ]),
    });
  }
  places.push({ place: "embedding", parts: [{ name: "tokens, positions", className: "attention", norm: norm(outside(["token", "position"])) }] });
  return places;
}

function drawFlow() {
  if (missing(report.gradients, "flow-missing", "The gradient")) return;
  byId("flow-source").textContent = `Norm of the gradient: ${report.gradients.is}.`;
  const places = way();
  const most = Math.max(...places.flatMap(({ parts }) => parts.map(({ norm }) => norm)));
  const bar = ({ name, className, norm }) => {
    const fill = element("div", { className: "fill" });
    fill.style.width = `${most > 0 ? (100 * norm) / most : 0}%`;
    return element("div", { className: `bar ${className}` }, element("div", { className: "track" }, fill),
      element("span", {}, `${digits(norm)} ${name}`));
  };
  const rows = places.flatMap(({ place, parts }, i) => [
    ...(i ? [element("div", { className: "arrow", "aria-hidden": "true" }, "↓")] : []),
    element("div", { className: "place" }, place), element("div", {}, ...parts.map(bar)),
  ]);
  byId("flow-bars").replaceChildren(element("div", { className: "flow" }, ...rows));
}

// ---- all numbers

function drawTensors() {
  const columns = [["norm", "norm"], ["change", "change"], ["gradient", "gradient"]];
  const heading = element("tr", {}, ...["tensor", "shape", ...columns.map(([name]) => name)].map((name) => element("th", { scope: "col" }, name)));
  const rows = report.tensors.map((tensor) => element("tr", {}, element("th", { scope: "row" }, element("code", {}, tensor.name)),
    element("td", {}, tensor.shape.join(" × ")),
    ...columns.map(([, key]) => element("td", { "data-number": key }, tensor[key] === null ? "–" : digits(tensor[key])))));
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
drawTensors();
drawFlow();
choose(0, 0);
// Also draws what has the theme's colours.
document.addEventListener("themechange", () => {
  drawNorms();
  drawChange();
});
themeButton(byId("theme"));
