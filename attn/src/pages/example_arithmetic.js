// Self-attention on plain arrays, rows of rows, and how its numbers are written.

const dot = (a, b) => a.reduce((sum, value, k) => sum + value * b[k], 0);
const column = (matrix, j) => matrix.map((row) => row[j]);
const product = (a, b) => a.map((row) => b[0].map((_, j) => dot(row, column(b, j))));
const added = (a, b) => a.map((value, k) => value + b[k]);

/** What scores are multiplied with, for keys of `size` numbers. */
const scaleFactor = (scale, size) => (scale === "inverse_sqrt" ? 1 / Math.sqrt(size) : 1);

/** The scores that take part: -Infinity for those a word may not see. */
const withMask = (scores, causal) =>
  scores.map((row, i) => row.map((score, j) => (causal && j > i ? -Infinity : score)));

/** Shares that add up to 1. Taking the largest score from all of them changes nothing but keeps e^score finite. */
function softmax(row) {
  const largest = Math.max(...row);
  const powers = row.map((score) => Math.exp(score - largest));
  const sum = powers.reduce((a, b) => a + b, 0);
  return powers.map((power) => power / sum);
}

/**
 * Self-attention of the rows of `x` (T, C): queries, keys and values (T, D), scores (T, T) before the mask, weights (T, T)
 * and output (T, D). `scale` is "one" or "inverse_sqrt". `keysOf` and `valuesOf` are what keys and values are made of, if not `x`.
 */
function compute({ x, wq, wk, wv, scale = "one", causal = true, keysOf = x, valuesOf = x }) {
  const [q, k, v] = [product(x, wq), product(keysOf, wk), product(valuesOf, wv)];
  const factor = scaleFactor(scale, k[0].length);
  const scores = q.map((query) => k.map((key) => dot(query, key) * factor));
  const weights = withMask(scores, causal).map(softmax);
  return { q, k, v, scores, weights, output: product(weights, v) };
}

window.attentionExample = { compute };

// ---- numbers as text

const minus = (text) => text.replace("-", "−");

/** What f64 leaves of numbers that should be equal. */
const ROUNDING = 1e-12;

/** With at most four decimals, none of them idle; very large and very small numbers as 1.5e7. */
function plain(value) {
  if (!Number.isFinite(value)) return minus(String(value).replace("Infinity", "∞"));
  const size = Math.abs(value);
  if (size >= 1e5 || (size > ROUNDING && size < 0.5e-4)) return value.toExponential(1).replace("e+", "e").replaceAll("-", "−");
  return minus(String(Number(value.toFixed(4)) + 0));
}

/** The numbers of a matrix, all with the same number of decimals, the fewest that show them to four. */
function formatter(matrix) {
  const finite = matrix.flat().filter(Number.isFinite);
  let digits = 0;
  while (digits < 4 && finite.some((value) => Math.abs(Number(value.toFixed(digits)) - value) > 1e-9)) digits += 1;
  return (value) => {
    // Weights are exactly 0 or 1 where nothing else can be.
    if (!Number.isFinite(value) || Math.abs(value) >= 1e5 || value === 0 || value === 1) return plain(value);
    const text = value.toFixed(digits);
    return minus(Number(text) === 0 ? text.replace("-", "") : text);
  };
}

/** A share that a word gives to one that it sees: none is 0, though f64 may have no number above it. */
const isTiny = (share) => share < 0.5e-4;
const shareText = (share, format = plain) => (isTiny(share) ? "<0.0001" : format(share));
/** "≈" where one of the shares of the words `seen` is too small to write, and another therefore almost 1. */
const nearly = (shares, seen) => (shares.some((share, m) => seen.includes(m) && isTiny(share)) ? "≈" : undefined);

const isWhole = (value) => Math.abs(Number(plain(value).replaceAll("−", "-")) - value) <= ROUNDING * Math.max(1, Math.abs(value));
/** "=", or "≈" where one of the numbers is longer than what is written of it. */
const equals = (...values) => (values.filter(Number.isFinite).every(isWhole) ? "=" : "≈");
/** The result of an expression in which `operands` are written. */
const isResult = (value, operands = [], sign = equals(value, ...operands)) => `${sign} <b>${plain(value)}</b>`;

/** A letter with its indices, counted from 1: letter("q", 0) is q with a small 1. */
const letter = (name, ...indices) => `<i>${name}</i><sub>${indices.map((i) => i + 1).join("")}</sub>`;

// ---- where each number of a result comes from: the rows and columns to mark ("first" and "second", as the colours of the
// factors), and the arithmetic in HTML.

const factor = (which, value, text = plain(value)) =>
  `<span class="${which}">${value < 0 ? `(${text})` : escapeXml(text)}</span>`;
const terms = (a, b, text = plain) =>
  a.map((value, k) => `${factor("first", value, text(value))} × ${factor("second", b[k])}`).join(" + ");

const projection = (name, matrix) => (all, i, j) => ({
  marks: [["x", "row", i, "first"], [matrix, "column", j, "second"]],
  words: `Number ${j + 1} of ${letter(name, i)}: row ${letter("x", i)} of X times column ${j + 1} of W<sup>${name.toUpperCase()}</sup>`,
  sum: `${terms(all.x[i], column(all[matrix], j))} ${isResult(all[name][i][j], [...all.x[i], ...column(all[matrix], j)])}`,
});

const explanations = {
  q: projection("q", "wq"),
  k: projection("k", "wk"),
  v: projection("v", "wv"),

  scores(all, i, j) {
    const scaled = all.scale === "inverse_sqrt";
    const sum = terms(all.q[i], all.k[j]);
    const operands = [...all.q[i], ...all.k[j]];
    const [is, result] = [equals(...operands), isResult(all.scores[i][j], operands)];
    const size = all.k[j].length;
    return {
      marks: [["q", "row", i, "first"], ["k", "row", j, "second"]],
      words: `How well key ${letter("k", j)} (row ${j + 1} of K) fits query ${letter("q", i)} (row ${i + 1} of Q)`,
      sum: scaled
        ? `${letter("q", i)} · ${letter("k", j)} / √${size} ${is} (${sum}) / √${size} ${result}`
        : `${letter("q", i)} · ${letter("k", j)} ${is} ${sum} ${result}`,
    };
  },

  masked(all, i, j) {
    const score = `score(${i + 1}, ${j + 1})`;
    const hidden = all.causal && j > i;
    const after = j > i ? `word ${j + 1} comes after word ${i + 1}` : `word ${j + 1} does not come after word ${i + 1}`;
    const why = hidden ? `${after}: hidden` : j > i ? `${after}, but there is no mask: it stays` : `${after}: it stays`;
    return { marks: [["scores", "cell", [i, j], "first"]], words: why, sum: `${score} ${isResult(all.masked[i][j])}` };
  },

  weights(all, i, j) {
    const row = all.masked[i];
    const seen = row.map((_, m) => m).filter((m) => row[m] > -Infinity);
    const share = letter("α", i, j);
    const marks = seen.map((m) => ["masked", "cell", [i, m], "first"]);
    if (!seen.includes(j)) {
      return { marks, words: `Word ${i + 1} cannot see word ${j + 1}`, sum: `${share} = e<sup>−∞</sup> / … = <b>0</b>` };
    }
    const power = (m) => `e<sup>${plain(row[m])}</sup>`;
    const scores = seen.map((m) => row[m]);
    const symbols = `${share} ${equals(...scores)} ${power(j)} / (${seen.map(power).join(" + ")})`;
    const largest = Math.max(...scores.map(Math.abs));
    const powers = scores.map((score) => plain(Math.exp(score))).join(" + ");
    const numbers = largest < 10 ? ` ≈ ${plain(Math.exp(row[j]))} / (${powers})` : "";
    const words = `The share of its attention that word ${i + 1} gives to word ${j + 1}`;
    const value = all.weights[i][j];
    const result = isTiny(value) ? "&lt; <b>0.0001</b>" : isResult(value, scores, nearly(all.weights[i], seen));
    return { marks, words, sum: `${symbols}${numbers} ${result}` };
  },

  output(all, i, j) {
    const seen = all.weights[i].map((_, m) => m).filter((m) => !(all.causal && m > i));
    const [shares, values] = [seen.map((m) => all.weights[i][m]), seen.map((m) => all.v[m][j])];
    return {
      marks: seen.flatMap((m) => [["weights", "cell", [i, m], "first"], ["v", "cell", [m, j], "second"]]),
      words: `Number ${j + 1} of ${letter("a", i)}: the shares of word ${i + 1} times column ${j + 1} of V`,
      sum: `${terms(shares, values, shareText)} ${isResult(all.output[i][j], [...shares, ...values], nearly(shares, seen))}`,
    };
  },
};
