// What the model says about an example: classes, log p(x) among the training rows, nearest rows.

const SCORES = {}; // sorted scores of the training examples, and the range of colours
const MAX_BARS = 12;
const BINS = 44;

function startAnswer() {
  SCORES.sorted = Float32Array.from(ROWS.score.filter((_, i) => !ROWS.test[i])).sort();
  const at = (share) => SCORES.sorted[Math.min(SCORES.sorted.length - 1, Math.floor(share * SCORES.sorted.length))];
  SCORES.ramp = [at(0.02), at(0.98)];
  SCORES.axis = [at(0.002), at(1)];
  byId("score-title").textContent = META.kind === "ddgm" ? "−E(x), which is log p(x) up to a constant" : "log p(x), in nats";
  byId("score-help").textContent = `How usual the example is: grey are the training examples, the blue line is this one. To the left of the dashed line lies 1 % of the training examples; the page calls that unknown${NUM_CLASSES ? ", and a class given there deserves no trust" : ""}.${META.kind === "ddgm" ? "" : ` Estimated from ${META.numDraws} draws of z${NUM_CLASSES ? " per class" : ""}.`}`;
  byId("bars-block").hidden = !NUM_CLASSES;
  const key = [make("i"), META.kind === "ddgm" ? "p(y|x) of the energy" : "q(y|x), the classifier"];
  if (META.kind !== "ddgm") key.push(make("i", { class: "second" }), "p(y|x), Bayes’ rule on the decoder");
  byId("bars-help").replaceChildren(make("span", { class: "key" }, ...key));
  if (META.kind !== "ddgm") byId("bars-help").append(". Good is: both agree.");
  byId("nearest-block").hidden = META.map.method === "plane";
  byId("nearest-help").textContent = META.kind === "ddgm" ? "Those with the most similar features." : `Those whose ${META.space} is most similar${META.kind === "m2" ? ": the same style, of any class" : ""}.`;
}

const shareBelow = (score) => {
  let [low, high] = [0, SCORES.sorted.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (SCORES.sorted[middle] < score) low = middle + 1;
    else high = middle;
  }
  return low / SCORES.sorted.length;
};

function showAnswer(found) {
  byId("answer").hidden = false;
  const unknown = found.score < META.unknownBelow;
  const share = shareBelow(found.score);
  const answer = NUM_CLASSES ? `Class ${className(found.y)}, ${percent(found.probabilities[found.y])}` : "";
  const how = unknown ? `unknown: ${SCORE_NAME} is lower than for ${percent(1 - share)} of the training examples` : `${SCORE_NAME} is higher than for ${percent(share)} of the training examples`;
  const verdict = byId("verdict");
  verdict.textContent = answer ? `${answer}; ${how}` : how[0].toUpperCase() + how.slice(1);
  verdict.classList.toggle("unknown", unknown);
  announce(verdict.textContent);
  if (NUM_CLASSES) showBars(found);
  showHistogram(found.score);
  const near = nearestRows(found.latents, META.image ? 10 : 6);
  const words = (i) => (CLASSES.length ? (ROWS.label[i] < 0 ? (ROWS.predicted[i] < 0 ? "?" : `${className(ROWS.predicted[i])}?`) : className(ROWS.label[i])) : `example ${i}`);
  if (META.image) byId("nearest").replaceChildren(...near.map((i) => thumbnail(rowValues(i), words(i))));
  else byId("nearest").replaceChildren(columnTable(near.map(words), near.map(rowValues)));
  byId("nearest").classList.toggle("wide", !META.image);
  if (found.rebuilt && META.image) show(byId("rebuilt"), found.rebuilt, "reconstruction");
}

function showBars(found) {
  const order = CLASSES.map((_, k) => k);
  if (CLASSES.length > MAX_BARS) order.sort((a, b) => found.probabilities[b] - found.probabilities[a]);
  const rows = order.slice(0, MAX_BARS).map((k) => {
    const shares = [found.probabilities[k], ...(found.bayes ? [found.bayes[k]] : [])];
    const bars = shares.map((share, n) => make("i", { class: n ? "second" : "", style: `width:${100 * share}%` }));
    return make(
      "div",
      { class: "bar" },
      make("span", { title: className(k) }, className(k)),
      make("span", { class: "track", "aria-hidden": "true" }, ...bars),
      make("span", { class: "numbers" }, shares.map(percent).join(" · ")),
    );
  });
  byId("bars").style = nameWidth(CLASSES);
  byId("bars").replaceChildren(...rows);
}

function svg(tag, attributes, text = "") {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.textContent = text;
  return element;
}

function showHistogram(score) {
  const [width, height, foot] = [360, 92, 16];
  const [low, high] = SCORES.axis;
  const at = (value) => (width * (value - low)) / (high - low || 1);
  const counts = new Array(BINS).fill(0);
  for (const value of SCORES.sorted) counts[Math.min(BINS - 1, Math.max(0, Math.floor((BINS * (value - low)) / (high - low || 1))))]++;
  const most = Math.max(...counts);
  const words = `${SCORE_NAME} of this example: ${number(score)}; of the training examples: ${number(low)} to ${number(high)}`;
  const picture = svg("svg", { viewBox: `0 0 ${width} ${height + foot}`, role: "img", "aria-label": words });
  counts.forEach((count, n) => {
    const size = (height - 14) * (count / most);
    picture.append(svg("rect", { x: (n * width) / BINS, width: width / BINS - 1, y: height - size, height: size, fill: "var(--point)" }));
  });
  const limit = at(META.unknownBelow);
  picture.append(svg("line", { x1: limit, x2: limit, y1: 12, y2: height, stroke: "var(--alarm)", "stroke-dasharray": "4 3" }));
  picture.append(svg("text", { x: limit + 3, y: 10 }, "unknown to the left"));
  const place = Math.min(Math.max(at(score), 0), width);
  picture.append(svg("line", { x1: place, x2: place, y1: 4, y2: height, stroke: "var(--accent)", "stroke-width": 3 }));
  const outside = score < low ? "← " : score > high ? "→ " : "";
  const anchor = place > width * 0.75 ? "end" : place < width * 0.25 ? "start" : "middle";
  picture.append(svg("text", { x: place, y: height + 12, "text-anchor": anchor, style: "fill:var(--ink);font-weight:600" }, `${outside}${number(score)}`));
  if (anchor !== "start") picture.append(svg("text", { x: 0, y: height + 12 }, number(low)));
  if (anchor !== "end") picture.append(svg("text", { x: width, y: height + 12, "text-anchor": "end" }, number(high)));
  byId("histogram").replaceChildren(picture);
}
