// The current matrix as a vector drawing for a paper: black on white, labels, a colour scale with numbers.

const PAPER = { cell: 18, font: 11, most: 256 }; // px; rows and columns drawn at most: more are joined in blocks

/** The SVG text of a head between units; `title` is drawn above. */
function matrixSvg(weights, units, title) {
  const block = Math.ceil(units.size / PAPER.most);
  const size = Math.ceil(units.size / block);
  const cell = Math.max(3, Math.min(PAPER.cell, 900 / size));
  const labelled = Math.ceil((PAPER.font + 1) / (cell / block));
  const margin = Math.min(120, 14 + 7 * Math.max(...units.labels.map((text) => Array.from(text).length)));
  const [left, top] = [margin, 34 + margin];
  const side = size * cell;
  const parts = [];
  const rect = (x, y, w, h, fill) => parts.push(`<rect x="${round(x)}" y="${round(y)}" width="${round(w)}" height="${round(h)}" fill="${fill}"/>`);
  const text = (words, x, y, rest = "") => parts.push(`<text x="${round(x)}" y="${round(y)}"${rest}>${escapeXml(words)}</text>`);

  text(title, 4, 16);
  largestOfBlocks(weights, units.size, block).forEach((weight, i) => {
    const query = Math.floor((Math.sqrt(8 * i + 1) - 1) / 2);
    const index = INDEX_OF[weight];
    if (index) rect(left + (i - triangle(query)) * cell, top + query * cell, cell, cell, hex(colourTable("blue", "light")[index]));
  });
  parts.push(`<path d="M${round(left)} ${round(top)}v${round(side)}h${round(side)}" fill="none" stroke="#000"/>`);
  for (let item = 0; item < units.size; item += labelled) {
    const along = ((item + 0.5) / block) * cell;
    text(units.labels[item], left - 5, top + along + 4, ' text-anchor="end"');
    text(units.labels[item], 0, 0, ` transform="translate(${round(left + along + 4)} ${round(top - 5)}) rotate(-90)"`);
  }
  const width = left + side + 80;
  drawScale(rect, text, left + side + 20, top, Math.min(side, 160));
  return `<svg xmlns="http://www.w3.org/2000/svg" width="${round(width)}" height="${round(top + Math.max(side, 60) + 12)}" viewBox="0 0 ${round(width)} ${round(top + Math.max(side, 60) + 12)}" font-family="sans-serif" font-size="${PAPER.font}" shape-rendering="crispEdges">
<title>${escapeXml(title)}</title>
<rect width="100%" height="100%" fill="#fff"/>
<g fill="#000">
${parts.join("\n")}
</g>
</svg>
`;
}

const round = (x) => Number(x.toFixed(2));
const hex = (rgb) => `#${rgb.map((x) => x.toString(16).padStart(2, "0")).join("")}`;

/** The largest weight of each block, in rows. */
function largestOfBlocks(weights, size, block) {
  if (block === 1) return weights;
  const largest = new Uint16Array(triangle(Math.ceil(size / block)));
  for (let query = 0, i = 0; query < size; query++) {
    const row = triangle(Math.floor(query / block));
    for (let key = 0; key <= query; key++, i++) {
      const at = row + Math.floor(key / block);
      if (weights[i] > largest[at]) largest[at] = weights[i];
    }
  }
  return largest;
}

/** A colour scale with numbers, 1 at the top, on the same square root as the cells. */
function drawScale(rect, text, x, y, height) {
  const steps = 64;
  const table = colourTable("blue", "light");
  for (let i = 0; i < steps; i++) {
    rect(x, y + (height * i) / steps, 12, height / steps + 0.1, hex(table[Math.round(255 * (1 - (i + 0.5) / steps))]));
  }
  for (const weight of [0, 0.02, 0.1, 0.25, 0.5, 1]) text(String(weight), x + 17, y + height * (1 - Math.sqrt(weight)) + 4);
}

/** Saves the current view; the name says what it is. */
function saveSvg(weights, units, title, name) {
  const joined = Math.ceil(units.size / PAPER.most);
  const remark = joined > 1 ? `; a cell is the largest of ${joined} x ${joined} weights` : "";
  download(`${name}.svg`, matrixSvg(weights, units, title + remark));
}
