// The attention map of one prompt: what is chosen, who is told of it, and how it is chosen (pointer, keys, address).

/** What is shown, counted from 0; `head` may be ALL, `item` is a token or a word, as `units` says. */
const state = { frame: data.frames.length - 1, layer: 0, head: 0, units: hasWords ? byWords : byTokens, item: 0 };
/** What the pointer is on: shown as if it were chosen, as long as it stays. */
const pointed = { item: null, cell: null };

let frame = null; // the unpacked frame that is shown
let drawn = {}; // what the page shows, to redraw only what changed
let due = null; // promise of the drawing that is under way
let latest = 0; // number of the last wish for a frame

const weightsNow = () => headWeights(frame, state.layer, state.head, state.units);
const headName = (head) => (head === ALL ? `all ${heads} heads (mean)` : `head ${head + 1} of ${heads}`);

/** Changes what is shown; the promise is kept when it is drawn. */
async function select(changes, { speak = true } = {}) {
  const { units } = state;
  Object.assign(state, changes);
  if (state.units !== units && changes.item === undefined) state.item = inOtherUnits(state.item, units, state.units);
  state.item = clamp(state.item, 0, state.units.size - 1);
  pointed.item = pointed.cell = null;
  hideTooltip();
  if (frame?.index !== state.frame) {
    const wish = ++latest;
    try {
      const loaded = await loadFrame(state.frame);
      if (wish === latest) frame = loaded;
    } catch (error) {
      stop();
      showFailure(`${data.frames[state.frame].label} cannot be shown: ${error.message}`);
      state.frame = frame.index;
      paintFrame(frame);
      return;
    }
  }
  await draw();
  writeAddress();
  if (speak) byId("status").textContent = `Layer ${state.layer + 1}, ${headName(state.head)}. ${inWords(weightsNow(), state.units, state.item)}`;
}

const inOtherUnits = (item, from, to) => (to === byWords ? data.words[from.last[item]] : byWords.last[item]);

/** Draws what changed before the browser paints next. */
function draw() {
  due ??= new Promise((resolve, reject) =>
    requestAnimationFrame(() => {
      due = null;
      try {
        if (frame) drawNow();
        resolve();
      } catch (error) {
        reject(error);
      }
    }),
  );
  return due;
}

function drawNow() {
  const { layer, head, units } = state;
  const item = pointed.item ?? state.item;
  const weights = weightsNow();
  const theme = isDark() ? "dark" : "light";
  const now = { units, order: byId("order").value, head: `${frame.index} ${layer} ${head} ${units.name} ${theme}` };
  if (drawn.units !== units) useUnits(units);
  if (drawn.head !== now.head) {
    paintMatrix(weights, units);
    paintControls();
    markHeads(layer, head);
    paintFrame(frame);
  }
  if (drawn.frame !== frame || drawn.order !== now.order) paintHeads(frame, now.order);
  if (drawn.frame !== frame) paintScores(frame, chooseHead);
  if (drawn.theme !== theme || drawn.units !== units) paintLegend();
  drawThumbs(frame, units);
  markMatrix(item, pointed.cell);
  paintText(weights, units, item, state.item);
  paintLists(weights, units, item);
  paintLens(frame, units, item, pointed.item === null);
  drawn = { ...now, frame, theme };
}

function useUnits(units) {
  buildText(
    units,
    (item, event) => point(item, null, event),
    (item) => select({ item }),
  );
  document.querySelectorAll(".unit").forEach((node) => (node.textContent = units.one));
  document.querySelectorAll(".of-words").forEach((node) => (node.hidden = units !== byWords));
  document.querySelectorAll(".of-tokens").forEach((node) => (node.hidden = units !== byTokens));
  byId("text-title").textContent = `Choose a ${units.one}`;
  for (const button of byId("units").querySelectorAll("button")) {
    button.setAttribute("aria-pressed", String(button.dataset.units === units.name));
  }
}

function paintControls() {
  const { layer, head } = state;
  byId("layer").value = layer;
  byId("head").value = head;
  byId("layer-down").disabled = layer === 0;
  byId("layer-up").disabled = layer === layers - 1;
  byId("head-down").disabled = head <= 0;
  byId("head-up").disabled = head === heads - 1;
  const when = data.frames.length > 1 ? `, ${frame.label}` : "";
  const title = `Layer ${layer + 1} of ${layers}, ${headName(head)}${when}`;
  byId("matrix-title").textContent = title;
  byId("matrix").setAttribute("aria-label", `Attention matrix. ${title}`);
}

/** Shows `item` while the pointer is on it. */
function point(item, cell, event) {
  const there = cell && cell[0] !== null && cell[1] !== null && cell[1] <= cell[0] ? cell : null;
  if (pointed.item !== item || String(pointed.cell) !== String(there)) {
    Object.assign(pointed, { item, cell: there });
    draw();
  }
  if (item === null || !event || !frame) return hideTooltip();
  const { units } = state;
  const [query, key] = there ?? [Math.max(item, state.item), Math.min(item, state.item)];
  if (there) showTooltip(`${units.labels[query]} → ${units.labels[key]}: ${shown(weightAt(weightsNow(), query, key))}`, event.clientX, event.clientY);
  else hideTooltip();
}

/** A finger can't hover: a tap also shows what hovering would. */
async function chooseInMatrix(item, cell, event) {
  await select({ item });
  if (event.pointerType !== "mouse") point(item, cell, event);
}

const chooseHead = (layer, head) => select({ layer, head });

// ---- keys

const KEYS = {
  ArrowLeft: () => ({ item: state.item - 1 }),
  ArrowRight: () => ({ item: state.item + 1 }),
  Home: () => ({ item: 0 }),
  End: () => ({ item: state.units.size - 1 }),
  ArrowUp: () => ({ head: Math.max(0, state.head - 1) }),
  ArrowDown: () => ({ head: Math.min(heads - 1, state.head + 1) }),
  "[": () => ({ layer: Math.max(0, state.layer - 1) }),
  "]": () => ({ layer: Math.min(layers - 1, state.layer + 1) }),
  a: () => ({ head: state.head === ALL || heads === 1 ? 0 : ALL }),
  ",": () => ({ frame: Math.max(0, state.frame - 1) }),
  ".": () => ({ frame: Math.min(data.frames.length - 1, state.frame + 1) }),
};
/** These work wherever nothing else needs them; all others only in the text, the matrix and the heads. */
const EVERYWHERE = ["ArrowLeft", "ArrowRight"];

async function onkey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, .scroll:not(#matrix)")) return;
  const inside = event.target.closest("#text, #matrix, #heads");
  if (!inside && !EVERYWHERE.includes(event.key)) return;
  if (event.key === "p" && data.frames.length > 1) return byId("play").click();
  if (!(event.key in KEYS)) return;
  event.preventDefault();
  if (event.key === "," || event.key === ".") stop();
  await select(KEYS[event.key]());
  showInText(state.item);
  if (matrixView.zoom > 1) showInMatrix(state.item);
  if (inside?.id === "text") textView.nodes[state.item].focus({ preventScroll: true });
}

// ---- the address: #layer=1&head=2&token=5&frame=3&units=words, all counted from 1

function writeAddress() {
  const parts = new URLSearchParams(publicState());
  try {
    history.replaceState(null, "", `#${parts}`);
  } catch {
    // some viewers forbid it; the page works without
  }
}

const publicState = () => ({
  layer: state.layer + 1,
  head: state.head === ALL ? "all" : state.head + 1,
  token: state.item + 1,
  frame: state.frame + 1,
  units: state.units.name,
});

/** Changes of the state, counted from 0, from names counted from 1; what is unknown or out of range is left out. */
function fromPublic({ layer, head, token, frame, units }) {
  const changes = {};
  const whole = (value, most) => (Number.isInteger(Number(value)) && value >= 1 && value <= most ? Number(value) - 1 : undefined);
  const named = { words: hasWords ? byWords : undefined, tokens: byTokens }[units];
  const found = {
    layer: whole(layer, layers),
    head: head === "all" && heads > 1 ? ALL : whole(head, heads),
    units: named,
    item: whole(token, (named ?? state.units).size),
    frame: whole(frame, data.frames.length),
  };
  for (const [name, value] of Object.entries(found)) if (value !== undefined) changes[name] = value;
  return changes;
}

const fromAddress = () => fromPublic(Object.fromEntries(new URLSearchParams(location.hash.slice(1))));

// ---- for scripts

const range = (value, most, name) => {
  if (!Number.isInteger(value) || value < 1 || value > most) throw new RangeError(`${name} ${value} is not in 1..${most}`);
  return value - 1;
};

/** Everything is counted from 1, as on the page. */
window.attentionMap = Object.freeze({
  /** A promise of the weight of token `query` on token `key`, between 0 and 1. */
  async weight(frame, layer, head, query, key) {
    const places = [range(layer, layers, "layer"), range(head, heads, "head")];
    const [from, to] = [range(query, context, "query"), range(key, context, "key")];
    const loaded = await loadFrame(range(frame, data.frames.length, "frame"));
    return weightAt(oneHead(loaded, ...places), from, to);
  },
  /** Shows `{layer, head, token, frame, units}`, any of them; a promise that is kept when it is drawn. */
  select: (wanted) => select(fromPublic(wanted)),
  /** What is chosen. */
  get state() {
    return publicState();
  },
});

// ---- start

/** The most telling head of a frame, or of a layer of it. */
function tellingHead({ scores }, within) {
  const places = scores.flatMap((row, layer) => row.map(({ telling }, head) => ({ layer, head, telling })));
  const among = places.filter(({ layer }) => within === undefined || layer === within);
  const { layer, head } = among.reduce((best, place) => (place.telling > best.telling ? place : best));
  return { layer, head };
}

function describe() {
  const { name, architecture, parameters, vocabulary } = data.model;
  byId("model").textContent =
    `${counted(layers, "layer")} of ${counted(heads, "head")}, ${counted(parameters, "parameter")}`;
  const weights = data.frames.length * layers * heads * triangle(context);
  const bytes = byId("data").textContent.length;
  byId("size").textContent =
    `${name}: architecture ${architecture}, vocabulary of ${counted(vocabulary, "token")}. The prompt: ${counted(context, "token")}; ${counted(weights, "attention weight")}${data.frames.length > 1 ? ` at ${data.frames.length} steps of training` : ""}; ` +
    `${(bytes / 1e6).toFixed(bytes < 1e7 ? 1 : 0)} MB of data. Nothing is loaded from elsewhere.`;
}

function buildControls() {
  byId("layer").append(...Array.from({ length: layers }, (_, i) => element("option", { value: i }, `layer ${i + 1} of ${layers}`)));
  const all = heads > 1 ? [element("option", { value: ALL }, "all heads")] : [];
  byId("head").append(...all, ...Array.from({ length: heads }, (_, i) => element("option", { value: i }, headName(i))));
  byId("layer").addEventListener("change", (event) => select({ layer: Number(event.target.value) }));
  byId("head").addEventListener("change", (event) => select({ head: Number(event.target.value) }));
  byId("layer-down").addEventListener("click", () => select(KEYS["["]()));
  byId("layer-up").addEventListener("click", () => select(KEYS["]"]()));
  byId("head-down").addEventListener("click", () => select(KEYS.ArrowUp()));
  byId("head-up").addEventListener("click", () => select(KEYS.ArrowDown()));
  byId("order").addEventListener("change", draw);
  byId("units").hidden = !hasWords;
  byId("units").addEventListener("click", ({ target }) => target.dataset.units && select({ units: target.dataset.units === "words" ? byWords : byTokens }));
  byId("all-weights").addEventListener("toggle", draw);
  byId("scores").addEventListener("toggle", () => frame && paintScores(frame, chooseHead));
  byId("save").addEventListener("click", () => {
    const place = `layer ${state.layer + 1}, ${state.head === ALL ? "mean of all heads" : `head ${state.head + 1}`}`;
    const title = `${data.model.name}, ${data.frames.length > 1 ? `${frame.label}, ` : ""}${place}: rows attend to columns`;
    saveSvg(weightsNow(), state.units, title, `attention ${place} ${state.units.name}`.replace(/\W+/g, "-"));
  });
}

async function start() {
  describe();
  if (typeof DecompressionStream === "undefined") {
    throw new Error("This page needs a newer browser: its numbers are compressed, and this browser cannot decompress them (Chrome and Edge from 80, Safari from 16.4, Firefox from 113).");
  }
  if (context === 0 || !layers || !heads) throw new Error("This page holds no attention weights: its prompt is empty.");
  buildControls();
  buildHeads(chooseHead);
  buildLens();
  buildScoreNotes();
  buildFrames((index) => select({ frame: index }, { speak: false }));
  buildMatrix(point, chooseInMatrix, () => frame && (paintMatrix(weightsNow(), state.units), markMatrix(state.item)));
  document.addEventListener("keydown", onkey);
  document.addEventListener("themechange", () => frame && (printing ? (drawNow(), drawAllThumbs()) : draw()));
  addEventListener("hashchange", () => select(fromAddress()));
  byId("size").append(" Unpacking …");
  const wanted = { ...fromPublic(data.start), ...fromAddress() };
  frame = await loadFrame(wanted.frame ?? state.frame);
  byId("size").lastChild.remove();
  Object.assign(state, { frame: frame.index }, tellingHead(frame, wanted.layer), wanted);
  await select({ item: wanted.item ?? tellingQuery(weightsNow(), state.units) }, { speak: false });
  document.documentElement.dataset.ready = "true";
}

themeButton(byId("theme"));
start().catch((error) => {
  showFailure(error.message);
  throw error;
});
