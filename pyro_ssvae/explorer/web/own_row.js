// A row of the visitor: a slider or a list for every column, the answer, and which columns decide it.

const own = { values: null, answer: null };
const SHOWN_REASONS = 12;

const judgeRow = latest(async () => {
  const found = await assess(Float32Array.from(own.values));
  own.answer = found;
  showAnswer(found);
  if (NUM_CLASSES) await explain(found);
});

/** Show how the log-odds of the answer change if a column is replaced by its mean. */
async function explain(found) {
  const copies = repeat(own.values, SIZE);
  META.features.forEach((column, j) => (copies[j * SIZE + j] = column.mean));
  const probabilities = await classify(copies, SIZE);
  const log = (share) => Math.log(Math.max(share, 1e-37));
  // From the other classes, because 1 - p has no digits left where p is nearly 1.
  const logOdds = (shares) => log(shares[found.y]) - log(shares.reduce((sum, share, k) => sum + (k === found.y ? 0 : share), 0));
  own.reasons = probabilities.map((shares) => logOdds(found.probabilities) - logOdds(shares));
  const order = own.reasons.map((_, j) => j).sort((a, b) => Math.abs(own.reasons[b]) - Math.abs(own.reasons[a]));
  const most = Math.max(0.1, Math.abs(own.reasons[order[0]]));
  const rows = order.slice(0, SHOWN_REASONS).map((j) => {
    const size = (50 * Math.abs(own.reasons[j])) / most;
    const against = own.reasons[j] < 0;
    const bar = make("i", { class: against ? "against" : "", style: `width:${size}%;left:${against ? 50 - size : 50}%` });
    const name = META.features[j].name;
    const words = `${against ? "−" : "+"}${Math.abs(own.reasons[j]).toFixed(2)} nats`;
    return make("div", { class: "bar" }, make("span", { title: name }, name), make("span", { class: "both", "aria-hidden": "true" }, bar), make("span", { class: "numbers" }, words));
  });
  byId("why-block").hidden = false;
  byId("why").replaceChildren(...rows);
}

function setRow(values) {
  own.values = Float32Array.from(values);
  drawTop();
  byId("columns").querySelectorAll("input, select").forEach((input, j) => {
    input.value = Number.isFinite(values[j]) ? values[j] : META.features[j].mean;
    input.nextElementSibling.textContent = META.features[j].words.length ? "" : columnWords(META.features[j], values[j]);
  });
  return judgeRow();
}

function makeColumn(column, j) {
  const label = `${column.name}`;
  let input;
  if (column.words.length) {
    input = make("select", { "aria-label": label }, ...column.words.map((word, code) => make("option", { value: code }, word)));
  } else {
    const step = column.whole && column.high - column.low >= 1 ? 1 / META.scale : (column.high - column.low) / 200 || 1;
    input = make("input", { type: "range", min: column.low, max: column.high, step, "aria-label": label });
  }
  const output = make("output", {});
  input.addEventListener("input", () => {
    own.values[j] = Number(input.value);
    drawTop();
    output.textContent = column.words.length ? "" : columnWords(column, own.values[j]);
    judgeRow();
  });
  return make("label", { class: "slider" }, make("span", { title: column.name }, column.name), input, output);
}

function startRow() {
  byId("own-row").hidden = false;
  byId("own-title").textContent = META.map.method === "plane" ? "A point of your own" : "A row of your own";
  byId("row-kept").hidden = META.map.method === "plane";
  byId("own-help").textContent = META.map.method === "plane" ? "Move the point by its coordinates, or click on the map." : "Move the columns and watch the answer. A slider covers the range of the training examples.";
  byId("own-card").style = nameWidth(META.features.map((column) => column.name));
  byId("columns").replaceChildren(...META.features.map(makeColumn));
  byId("row-kept").addEventListener("click", () => setRow(rowValues(Math.max(state.row, 0))));
  byId("row-means").addEventListener("click", () => setRow(META.features.map((column) => column.mean)));
}
