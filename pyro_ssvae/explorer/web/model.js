// The networks of the model, run by ONNX Runtime Web. Arrays are flat, with `count` examples one after the other.

const GRAPHS = META.graphs;
const HAS_CLASS = Boolean(GRAPHS.decoder?.inputs.includes("y"));
const NUM_CLASSES = GRAPHS.classifier ? CLASSES.length : 0;
const DIMENSIONS = { x: META.shape, y: [CLASSES.length], z: [META.latentDim], z1: [META.arrays.latents[1][1]] };
const sessions = {};
let ort = null;
let queue = Promise.resolve(); // graphs run one after the other, because they share one memory

async function loadModel() {
  const code = new Blob([await unpack("ort")], { type: "text/javascript" });
  const url = URL.createObjectURL(code);
  ort = await import(url);
  URL.revokeObjectURL(url);
  ort.env.wasm.numThreads = 1;
  ort.env.wasm.wasmBinary = (await unpack("wasm")).buffer;
  ort.env.logLevel = "error";
  for (const name of Object.keys(GRAPHS)) {
    sessions[name] = await ort.InferenceSession.create(await unpack(`graph-${name}`));
  }
}

/** Run a graph on inputs by name, and return its outputs by name. */
function run(name, inputs, count) {
  const feeds = {};
  for (const input of GRAPHS[name].inputs) {
    const values = input === "y" ? oneHot(inputs.y) : inputs[input];
    feeds[input] = new ort.Tensor("float32", values, [count, ...DIMENSIONS[input]]);
  }
  const result = queue.then(() => sessions[name].run(feeds));
  queue = result.catch(() => {});
  return result.then((tensors) => Object.fromEntries(Object.entries(tensors).map(([key, tensor]) => [key, tensor.data])));
}

function oneHot(classes) {
  const found = new Float32Array(classes.length * CLASSES.length);
  classes.forEach((k, i) => (found[i * CLASSES.length + k] = 1));
  return found;
}

const repeat = (values, times) => {
  const found = new Float32Array(values.length * times);
  for (let i = 0; i < times; i++) found.set(values, i * values.length);
  return found;
};
const classRange = (count, times = 1) => Array.from({ length: count * times }, (_, i) => Math.floor(i / times));

/** Return the means of p(x|y,z), or generated examples, for latents of the map's space and their classes. */
async function decode(latents, classes) {
  const count = classes.length;
  if (META.kind === "ddgm") return (await run("generator", { z: latents }, count)).x;
  const inputs = { [META.space]: latents, y: classes, x: new Float32Array(count * SIZE).fill(META.range[0]) };
  return (await run("decoder", inputs, count)).mean;
}

/** Return latents of the map's space: those of one example for its class. */
async function encode(x, y) {
  if (META.kind !== "ddgm") return (await run("encoder", { x, y: [y] }, 1)).mean;
  return META.map.method === "plane" ? x : reduceFeatures((await run("energy", { x }, 1)).features);
}

function reduceFeatures(features) {
  if (!ROWS.reduce) return features;
  const width = features.length;
  return Float32Array.from({ length: ROWS.width }, (_, i) => {
    let sum = 0;
    for (let j = 0; j < width; j++) sum += ROWS.reduce[i * width + j] * (features[j] - ROWS.reduce_mean[j]);
    return sum;
  });
}

/** Return z1 (or z) of every class, for the style of given latents of a class. */
async function restyle(latents, y) {
  const count = CLASSES.length;
  if (META.kind !== "m1m2") return repeat(latents, count);
  const style = (await run("upper_encoder", { z1: latents, y: [y] }, 1)).mean;
  return decodeUpper(repeat(style, count), classRange(count));
}

async function decodeUpper(z, classes) {
  const z1 = new Float32Array(classes.length * ROWS.width);
  return (await run("upper_decoder", { z, y: classes, z1 }, classes.length)).mean;
}

/** Return q(y|x), or p(y|x) of a DDGM, of `count` examples, as arrays of probabilities. */
async function classify(x, count) {
  const { probabilities } = await run("classifier", { x }, count);
  return classRange(count).map((i) => Array.from(probabilities.subarray(i * NUM_CLASSES, (i + 1) * NUM_CLASSES)));
}

function logNormal(noise, scale, start, width) {
  let sum = -0.5 * width * Math.log(2 * Math.PI);
  for (let j = start; j < start + width; j++) sum -= 0.5 * noise[j] * noise[j] + Math.log(scale[j]);
  return sum;
}

const move = (loc, scale, noise) => noise.map((value, j) => loc[j] + scale[j] * value);

/** Return log p(x|y) of one example for every class, or log p(x) without classes, by importance sampling. */
async function logLikelihoods(x) {
  const classes = META.kind === "m1" ? 1 : CLASSES.length;
  const total = classes * META.numDraws;
  const width = META.space === "z1" ? ROWS.width : META.latentDim;
  const y = classRange(total).map((i) => i % classes); // draws are [draw][class]
  let encoded = await run("encoder", { x: HAS_CLASS ? repeat(x, classes) : x, y: classRange(classes) }, HAS_CLASS ? classes : 1);
  const times = HAS_CLASS ? META.numDraws : total;
  let noise = ROWS.draws_z;
  if (META.kind === "m1m2") noise = expandDraws(ROWS.draws_z1, width, classes);
  const [loc, scale] = [repeat(encoded.mean, times), repeat(encoded.scale, times)];
  const latents = move(loc, scale, noise);
  const weights = Array.from((await run("decoder", { [META.space]: latents, y, x: repeat(x, total) }, total)).log_p);
  weights.forEach((_, i) => (weights[i] -= logNormal(noise, scale, i * width, width)));
  if (META.kind === "m1m2") {
    encoded = await run("upper_encoder", { z1: latents, y }, total);
    const z = move(encoded.mean, encoded.scale, ROWS.draws_z);
    const { log_p } = await run("upper_decoder", { z, y, z1: latents }, total);
    weights.forEach((_, i) => (weights[i] += log_p[i] - logNormal(ROWS.draws_z, encoded.scale, i * META.latentDim, META.latentDim)));
  }
  return classRange(classes).map((k) => logSumExp(weights.filter((_, i) => i % classes === k)) - Math.log(META.numDraws));
}

/** Repeat every draw for all classes. */
function expandDraws(draws, width, classes) {
  const found = new Float32Array(draws.length * classes);
  for (let i = 0; i < draws.length / width; i++) {
    found.set(repeat(draws.subarray(i * width, (i + 1) * width), classes), i * width * classes);
  }
  return found;
}

/** Return everything the page says about one example. */
async function assess(x) {
  const found = { x };
  if (NUM_CLASSES) found.probabilities = (await classify(x, 1))[0];
  found.y = NUM_CLASSES ? argmax(found.probabilities) : -1;
  if (META.kind === "ddgm") {
    found.score = -(await run("energy", { x }, 1)).energy[0];
    found.latents = await encode(x, 0);
    return found;
  }
  const joint = (await logLikelihoods(x)).map((value, k) => value + META.logPrior[k]);
  found.score = logSumExp(joint);
  if (NUM_CLASSES) found.bayes = softmax(joint);
  found.latents = await encode(x, Math.max(found.y, 0));
  found.rebuilt = await decode(found.latents, [Math.max(found.y, 0)]);
  return found;
}

/** Return the numbers of the rows nearest to given latents. */
function nearestRows(latents, most) {
  const width = ROWS.width;
  const distances = new Float32Array(ROWS.count);
  for (let i = 0; i < ROWS.count; i++) {
    let sum = 0;
    for (let j = 0; j < width; j++) {
      const difference = ROWS.latents[i * width + j] * ROWS.latent_unit[j] - latents[j];
      sum += difference * difference;
    }
    distances[i] = sum;
  }
  return smallest(distances, most);
}

/** Return where the smallest values are, in their order. */
function smallest(values, most) {
  const found = [];
  for (let i = 0; i < values.length; i++) {
    if (found.length === most && values[i] >= values[found[most - 1]]) continue;
    let at = found.length;
    while (at > 0 && values[found[at - 1]] > values[i]) at--;
    found.splice(at, 0, i);
    if (found.length > most) found.pop();
  }
  return found;
}
