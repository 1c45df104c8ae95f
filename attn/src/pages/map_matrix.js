// One head large. The picture is as large as the zoom says and only its visible part is ever drawn: one canvas, which
// stays in the window of the scrolling box.

const labelFont = (units) => (units.size <= 14 ? 16 : 12); // px
const MOST_CELL = 96; // px, at zoom 1
const INK_CELL = 30; // px from which on a cell holds its number

/** Palette indices of all u16 weights: the square-root scale. */
const INDEX_OF = Uint8Array.from({ length: FULL + 1 }, (_, weight) => rootIndex(weight / FULL));

/** The weights as an image of n x n points, where a point stands for the largest of `block` x `block` weights. */
function rasterise(weights, size, block, theme) {
  const n = Math.ceil(size / block);
  const largest = new Uint8Array(n * n);
  for (let query = 0, i = 0; query < size; query++) {
    const row = Math.floor(query / block) * n;
    for (let key = 0; key <= query; key++, i++) {
      const at = row + (block === 1 ? key : Math.floor(key / block));
      const index = INDEX_OF[weights[i]];
      if (index > largest[at]) largest[at] = index;
    }
  }
  const image = new ImageData(n, n);
  const points = new Uint32Array(image.data.buffer);
  const palette = Uint32Array.from(colourTable("blue", theme), ([r, g, b]) => ((255 << 24) | (b << 16) | (g << 8) | r) >>> 0);
  for (let row = 0; row < n; row++) {
    for (let at = row * n; at <= row * n + row; at++) points[at] = palette[largest[at]];
  }
  const canvas = element("canvas", { width: n, height: n });
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}

const matrixView = { zoom: 1, cell: 0, margin: 0, image: null, block: 1, weights: null, units: null };

let styles = new Map();
document.addEventListener("themechange", () => (styles = new Map()));

/** The value of a colour of the theme, such as "--ink". */
function styleOf(name) {
  if (!styles.has(name)) styles.set(name, getComputedStyle(document.documentElement).getPropertyValue(name).trim());
  return styles.get(name);
}

/** Sizes of the picture for the page's width: at zoom 1 all of it can be seen. */
function measureMatrix(units) {
  const box = byId("matrix");
  const pen = box.querySelector("canvas").getContext("2d");
  pen.font = fontOf(units);
  const longest = units.labels.reduce((most, text) => Math.max(most, pen.measureText(text).width), 10);
  matrixView.margin = Math.ceil(Math.min(longest, 0.28 * box.offsetWidth) + 10);
  const side = Math.min(box.offsetWidth, Math.max(320, 0.85 * innerHeight)) - 1;
  const fitted = Math.min((side - matrixView.margin) / units.size, MOST_CELL);
  matrixView.cell = fitted * matrixView.zoom;
  box.style.height = `${Math.ceil(matrixView.margin + fitted * units.size)}px`;
  box.style.overflow = matrixView.zoom > 1 ? "auto" : "hidden";
}

const fontOf = (units) => `${labelFont(units)}px system-ui, "Noto Sans", "DejaVu Sans", sans-serif`;
const matrixSide = () => matrixView.margin + matrixView.cell * matrixView.units.size;

/** Measures and colours the cells of a head; `markMatrix` then draws them. */
function paintMatrix(weights, units) {
  Object.assign(matrixView, { weights, units });
  measureMatrix(units);
  const ratio = devicePixelRatio || 1;
  const block = Math.max(1, Math.floor(1 / (matrixView.cell * ratio)));
  matrixView.image = rasterise(weights, units.size, block, isDark() ? "dark" : "light");
  matrixView.block = block;
  const [spacer] = byId("matrix").children;
  spacer.style.width = spacer.style.height = `${matrixSide()}px`;
  byId("zoom-out").disabled = matrixView.zoom <= 1;
  byId("zoom-in").disabled = matrixView.cell >= 40;
}

/** Draws the part of the picture that the box shows: cells, labels, and above them what is marked. */
function drawMatrix() {
  const box = byId("matrix");
  const { cell, margin, units, image, block } = matrixView;
  const [width, height] = [Math.min(box.clientWidth, matrixSide()), Math.min(box.clientHeight, matrixSide())];
  const [left, top] = [box.scrollLeft, box.scrollTop];
  const pen = sizedPen(width, height);
  const visible = (from, length) => [Math.max(0, Math.floor(from / cell)), Math.min(units.size, Math.ceil((from + length) / cell))];
  const [firstKey, endKey] = visible(left, width - margin);
  const [firstQuery, endQuery] = visible(top, height - margin);

  pen.save();
  pen.beginPath();
  pen.rect(margin, margin, width - margin, height - margin);
  pen.clip();
  pen.translate(margin - left, margin - top);
  pen.fillStyle = styleOf("--page");
  pen.fillRect(0, 0, cell * units.size, cell * units.size);
  pen.imageSmoothingEnabled = false;
  pen.drawImage(image, 0, 0, image.width * block * cell, image.height * block * cell);
  if (cell >= 7) {
    pen.strokeStyle = styleOf("--line");
    pen.lineWidth = 0.5;
    for (let i = firstQuery; i <= endQuery; i++) line(pen, 0, i * cell, Math.min(i + 1, units.size) * cell, i * cell);
    for (let i = firstKey; i <= endKey; i++) line(pen, i * cell, Math.max(0, i - 1) * cell, i * cell, units.size * cell);
  }
  if (cell >= INK_CELL) drawNumbers(pen, [firstQuery, endQuery], [firstKey, endKey]);
  pen.restore();
  drawLabels(pen, width, height);
  drawMark(pen, width, height);
}

/** The drawing context of the canvas, in CSS pixels and empty. */
function sizedPen(width, height) {
  const canvas = byId("matrix").querySelector("canvas");
  const ratio = devicePixelRatio || 1;
  const [w, h] = [Math.round(width * ratio), Math.round(height * ratio)];
  if (canvas.width !== w || canvas.height !== h) {
    Object.assign(canvas, { width: w, height: h });
    Object.assign(canvas.style, { width: `${width}px`, height: `${height}px` });
  }
  const pen = canvas.getContext("2d");
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.clearRect(0, 0, width, height);
  pen.font = fontOf(matrixView.units);
  return pen;
}

function line(pen, x0, y0, x1, y1) {
  pen.beginPath();
  pen.moveTo(x0, y0);
  pen.lineTo(x1, y1);
  pen.stroke();
}

function drawNumbers(pen, [firstQuery, endQuery], [firstKey, endKey]) {
  const { cell, weights } = matrixView;
  pen.textAlign = "center";
  pen.textBaseline = "middle";
  for (let query = firstQuery; query < endQuery; query++) {
    for (let key = firstKey; key <= Math.min(query, endKey - 1); key++) {
      const weight = weightAt(weights, query, key);
      pen.fillStyle = colours(weight)[1];
      pen.fillText(weight.toFixed(2).replace(/^0/, ""), (key + 0.5) * cell, (query + 0.5) * cell, cell - 2);
    }
  }
}

/** Labels of rows and columns, as many as there is room for. */
function drawLabels(pen, width, height) {
  const { cell, units, margin } = matrixView;
  pen.fillStyle = styleOf("--ink");
  const stride = Math.ceil((labelFont(units) + 1) / cell);
  for (let item = 0; item < units.size; item += stride) drawLabel(pen, item, width, height);
  pen.fillStyle = styleOf("--muted");
  pen.textAlign = "left";
  pen.textBaseline = "alphabetic";
  if (margin > 40) pen.fillText("↓ looks at →", 2, margin - 4, margin - 4);
}

function drawLabel(pen, item, width, height) {
  const { cell, units, margin } = matrixView;
  const box = byId("matrix");
  const along = margin + (item + 0.5) * cell;
  const [x, y] = [along - box.scrollLeft, along - box.scrollTop];
  pen.textBaseline = "middle";
  if (y >= margin && y <= height) {
    pen.textAlign = "right";
    pen.fillText(units.labels[item], margin - 5, y, margin - 8);
  }
  if (x >= margin && x <= width) {
    pen.save();
    pen.translate(x, margin - 5);
    pen.rotate(-Math.PI / 2);
    pen.textAlign = "left";
    pen.fillText(units.labels[item], 0, 0, margin - 8);
    pen.restore();
  }
}

const mark = { chosen: 0, cell: null };

/** Outlines the chosen row and column, and the cell under the pointer. */
function markMatrix(chosen, cell = null) {
  Object.assign(mark, { chosen, cell });
  drawMatrix();
}

function drawMark(pen, width, height) {
  const { cell, margin, units } = matrixView;
  const box = byId("matrix");
  const { chosen } = mark;
  if (chosen >= units.size) return;
  // Where not every label has room, the chosen one covers its neighbours.
  const font = labelFont(units);
  const strip = font + 1 > cell ? 2 * font + 6 : font + 2;
  const along = margin + (chosen + 0.5) * cell;
  pen.fillStyle = styleOf("--card");
  const [x, y] = [along - box.scrollLeft, along - box.scrollTop];
  // The chosen labels, in bold above those that may be too dense to read.
  if (y >= margin) pen.fillRect(0, y - strip / 2, margin - 2, strip);
  if (x >= margin) pen.fillRect(x - strip / 2, 0, strip, margin - 2);
  pen.save();
  pen.font = `bold ${pen.font}`;
  pen.fillStyle = styleOf("--ink");
  drawLabel(pen, chosen, width, height);
  pen.beginPath();
  pen.rect(margin - 2, margin - 2, width, height);
  pen.clip();
  pen.translate(margin - box.scrollLeft, margin - box.scrollTop);
  pen.lineWidth = 2;
  pen.strokeStyle = styleOf("--second");
  pen.strokeRect(chosen * cell, chosen * cell, Math.max(cell, 1), (units.size - chosen) * cell);
  pen.strokeStyle = styleOf("--accent");
  pen.strokeRect(0, chosen * cell, (chosen + 1) * cell, Math.max(cell, 1));
  if (mark.cell) {
    pen.strokeStyle = styleOf("--mark");
    pen.strokeRect(mark.cell[1] * cell, mark.cell[0] * cell, Math.max(cell, 2), Math.max(cell, 2));
  }
  pen.restore();
}

/** [query, key] under the pointer, or null; over a row's label the key is null, and over a column's the query. */
function cellAt(event) {
  const { cell, margin, units } = matrixView;
  const box = byId("matrix");
  const frame = box.getBoundingClientRect();
  const across = event.clientX - frame.left - box.clientLeft - margin;
  const down = event.clientY - frame.top - box.clientTop - margin;
  const key = across < 0 ? null : Math.floor((across + box.scrollLeft) / cell);
  const query = down < 0 ? null : Math.floor((down + box.scrollTop) / cell);
  if ((key === null && query === null) || key >= units.size || query >= units.size) return null;
  return [query, key];
}

/** Brings the weight of an item on itself into the middle of an enlarged matrix. */
function showInMatrix(item) {
  const box = byId("matrix");
  const centre = (item + 0.5) * matrixView.cell + matrixView.margin;
  box.scrollTo(centre - box.clientWidth / 2, centre - box.clientHeight / 2);
}

/** Wires the matrix: `onpoint(item, cell, event)` while the pointer is over it (item null when it leaves). */
function buildMatrix(onpoint, onchoose, onresize) {
  const box = byId("matrix");
  const itemOf = ([query, key]) => query ?? key;
  box.addEventListener("pointermove", (event) => {
    const cell = event.pointerType === "mouse" ? cellAt(event) : null;
    if (cell) onpoint(itemOf(cell), cell, event);
    else if (event.pointerType === "mouse") onpoint(null, null, event);
  });
  box.addEventListener("pointerleave", () => onpoint(null, null, null));
  box.addEventListener("click", (event) => {
    const cell = cellAt(event);
    if (cell) onchoose(itemOf(cell), cell, event);
  });
  box.addEventListener("scroll", () => matrixView.image && drawMatrix(), { passive: true });
  // What is printed is the picture of the screen.
  new ResizeObserver(() => printing || onresize()).observe(box);
  const zoom = (factor) => {
    matrixView.zoom = Math.max(1, matrixView.zoom * factor);
    onresize();
    showInMatrix(mark.chosen);
  };
  byId("zoom-in").addEventListener("click", () => zoom(2));
  byId("zoom-out").addEventListener("click", () => zoom(0.5));
}
