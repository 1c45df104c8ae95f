// The map's numbers: unpacked when first needed, by training frame, then by head and unit (tokens or words).
// Weights are u16 throughout: 65535 is 1. A head's weights lie in rows: row t holds the weights of query t on keys 0..t.

const data = JSON.parse(byId("data").textContent);
const { layers, heads } = data.model;
const context = data.tokens.length; // T
const FULL = 65535;
/** The head that stands for the mean over all heads of a layer. */
const ALL = -1;
/** Frames that are kept unpacked take at most about this many bytes, and at least two are kept. */
const FRAME_BYTES = 300e6;

/** Numbers in n rows of 1, 2, .. n: also the place where row n begins. */
const triangle = (n) => (n * (n + 1)) / 2;

/** `length` numbers from base64 of gzip, without ever holding all compressed bytes. */
async function unpack(text, Numbers, length) {
  const numbers = new Numbers(length);
  const bytes = new Uint8Array(numbers.buffer);
  const piece = 1 << 20; // a multiple of 4: base64 can be cut there
  let at = 0;
  const packed = new ReadableStream({
    pull(controller) {
      if (at >= text.length) return controller.close();
      controller.enqueue(fromBase64(text.slice(at, at + piece)));
      at += piece;
    },
  });
  const reader = packed.pipeThrough(new DecompressionStream("gzip")).getReader();
  let filled = 0;
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    if (filled + value.length > bytes.length) throw new Error("this page's data is longer than its sizes say");
    bytes.set(value, filled);
    filled += value.length;
  }
  if (filled !== bytes.length) throw new Error("this page's data is shorter than its sizes say");
  return numbers; // little-endian, as all devices with a browser are
}

function fromBase64(text) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
  const characters = atob(text);
  const bytes = new Uint8Array(characters.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = characters.charCodeAt(i);
  return bytes;
}

const frames = new Map(); // index -> promise of a frame, least recently used first
const frameBytes = 2 * layers * heads * triangle(context);
const framesKept = Math.max(2, Math.floor(FRAME_BYTES / frameBytes));

/** The numbers of a training frame; kept for the next call. */
function loadFrame(index) {
  const kept = frames.get(index);
  const frame = kept ?? unpackFrame(index);
  frames.delete(index);
  frames.set(index, frame);
  if (frames.size > framesKept) frames.delete(frames.keys().next().value);
  return frame;
}

async function unpackFrame(index) {
  const { label, step, scores, attention, candidates, probabilities, next } = data.frames[index];
  const places = (layers + 1) * context;
  return {
    index,
    label,
    step,
    scores,
    attention: await unpack(attention, Uint16Array, layers * heads * triangle(context)),
    candidates: await unpack(candidates, Uint32Array, places * data.candidates_each),
    probabilities: await unpack(probabilities, Uint16Array, places * data.candidates_each),
    next: await unpack(next, Uint16Array, places),
  };
}

// ---- units: a token or a word each

const MARKS = { "\n": "↵", "\r": "␍", "\t": "⇥", " ": "␣", "\u00a0": "⍽" };

/** A character, or a symbol for one that is not seen or turns others around. */
function symbol(c) {
  if (MARKS[c]) return MARKS[c];
  if (c < " ") return String.fromCharCode(0x2400 + c.charCodeAt(0));
  if (/[\p{C}\p{Z}]/u.test(c) && c !== "\u200d") return `U+${c.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}`;
  return c;
}

const inSymbols = (text) => Array.from(text, symbol).join("");

/** `text` in symbols, as a label of at most `most` characters. */
function label(text, most = 16) {
  if (text === "") return "∅";
  const shown = Array.from(text, symbol);
  if (/^\p{M}/u.test(text)) shown.unshift("◌");
  return shown.length > most ? `${shown.slice(0, most - 1).join("")}…` : shown.join("");
}

const byTokens = {
  name: "tokens",
  one: "token",
  size: context,
  texts: data.tokens,
  labels: data.tokens.map((text) => label(text)),
  first: data.tokens.map((_, token) => token),
  last: data.tokens.map((_, token) => token),
};

const byWords = (() => {
  const texts = data.word_texts;
  const size = texts.length;
  const [first, last] = [Array(size).fill(-1), Array(size).fill(0)];
  data.words.forEach((word, token) => {
    if (first[word] < 0) first[word] = token;
    last[word] = token;
  });
  return { name: "words", one: "word", size, texts, labels: texts.map((text) => label(text.trim() || text)), first, last };
})();

const hasWords = byWords.size >= 2 && byWords.size < context;

// ---- weights

const kept = new Map(); // a few heads, for the frame that is shown

/** The weights of a head (or ALL of a layer) between units, in rows. */
function headWeights(frame, layer, head, units) {
  const key = `${frame.index} ${layer} ${head} ${units.name}`;
  if (!kept.has(key)) {
    if (kept.size >= 6) kept.delete(kept.keys().next().value);
    const tokens = head === ALL ? meanOfHeads(frame, layer) : oneHead(frame, layer, head);
    kept.set(key, units === byWords ? betweenWords(tokens) : tokens);
  }
  return kept.get(key);
}

function oneHead(frame, layer, head) {
  const size = triangle(context);
  const start = (layer * heads + head) * size;
  return frame.attention.subarray(start, start + size);
}

function meanOfHeads(frame, layer) {
  const size = triangle(context);
  const sums = new Uint32Array(size);
  for (let head = 0; head < heads; head++) {
    const weights = oneHead(frame, layer, head);
    for (let i = 0; i < size; i++) sums[i] += weights[i];
  }
  return Uint16Array.from(sums, (sum) => Math.round(sum / heads));
}

/** Weight of word a on word b: the mean over a's tokens of the sum over b's tokens. */
function betweenWords(tokens) {
  const sums = new Float64Array(triangle(byWords.size));
  for (let query = 0, i = 0; query < context; query++) {
    const word = data.words[query];
    const row = triangle(word);
    const share = 1 / (byWords.last[word] - byWords.first[word] + 1);
    for (let key = 0; key <= query; key++, i++) sums[row + data.words[key]] += tokens[i] * share;
  }
  return Uint16Array.from(sums, (sum) => Math.round(Math.min(sum, FULL)));
}

/** The weight, between 0 and 1, of `query` on `key`; 0 where the query comes first. */
const weightAt = (weights, query, key) => (key > query ? 0 : weights[triangle(query) + key] / FULL);

/** Three digits behind the point, for lists and tooltips. */
const shown = (weight) => weight.toFixed(3);

/** The query whose largest weight on an earlier unit is largest (not the first unit, nor the token before); else the last. */
function tellingQuery(weights, { size, name }) {
  const gap = name === "words" ? 0 : 1;
  let best = [0, size - 1];
  for (let query = 2; query < size; query++) {
    for (let key = 1; key < query - gap; key++) {
      const weight = weights[triangle(query) + key];
      if (weight > best[0]) best = [weight, query];
    }
  }
  return best[1];
}

// ---- scores

const SCORES = {
  previous: { name: "previous token", note: "mean weight on the token just before" },
  first: { name: "first token", note: "mean weight on the first token of all, where heads rest that find nothing" },
  same: { name: "same token", note: "mean weight on earlier occurrences of the same token, where there are any" },
  telling: { name: "telling", note: "mean of the largest weight on a token that is neither itself, the one before it, nor the first" },
  entropy: { name: "entropy", note: "in bits: 0 if all weight is on one token, log₂ n if spread evenly over n" },
  distance: { name: "distance", note: "mean number of tokens that it looks back" },
};

// A query that sees n tokens has at most log2(n) bits.
const mostEntropy = context < 2 ? 0 : data.tokens.slice(1).reduce((sum, _, i) => sum + Math.log2(i + 2), 0) / (context - 1);

/** What a head clearly does, in a word or two; "" where no score is clear. */
function nature(scores) {
  const clear = ["previous", "first", "same"].filter((name) => scores[name] >= 0.5);
  clear.sort((a, b) => scores[b] - scores[a]);
  if (clear.length) return SCORES[clear[0]].name;
  if (scores.distance !== null && scores.distance < 0.5) return "itself";
  if (mostEntropy && scores.entropy > 0.8 * mostEntropy) return "broad";
  return scores.telling >= 0.4 ? "one far token" : "";
}
