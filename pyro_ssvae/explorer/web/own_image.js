// An image of the visitor: drawn, opened from a file, dropped, pasted, or that of a row.

const pad = { element: byId("pad"), source: null, values: null, side: 280 };

const judgeImage = latest(async () => {
  const values = padValues();
  pad.values = values;
  show(byId("seen"), values, "what the model sees");
  const found = await assess(values);
  pad.answer = found;
  showAnswer(found);
});

function clearPad() {
  const context = pad.element.getContext("2d");
  context.fillStyle = "#000";
  context.fillRect(0, 0, pad.side, pad.side);
  pad.row = -1;
  pad.drawn = false;
}

/** Return the pixels of the pad in the size, channels and range of the training images. */
function padValues() {
  if (pad.row >= 0) return rowValues(pad.row);
  const [channels, height, width] = META.image;
  const source = preparePad();
  const small = make("canvas", { width, height });
  const context = small.getContext("2d", { willReadFrequently: true });
  context.imageSmoothingQuality = "high";
  context.drawImage(source, 0, 0, width, height);
  const { data } = context.getImageData(0, 0, width, height);
  const area = height * width;
  const values = new Float32Array(SIZE);
  const [low, high] = META.range;
  for (let i = 0; i < area; i++) {
    const grey = 0.299 * data[4 * i] + 0.587 * data[4 * i + 1] + 0.114 * data[4 * i + 2];
    for (let c = 0; c < channels; c++) values[c * area + i] = low + ((high - low) * (channels > 1 ? data[4 * i + c] : grey)) / 255;
  }
  return values;
}

/** Return the pad, inverted and with its ink moved and scaled as in the training images if that is asked for. */
function preparePad() {
  const copy = make("canvas", { width: pad.side, height: pad.side });
  const context = copy.getContext("2d", { willReadFrequently: true });
  if (byId("pad-invert").checked) context.filter = "invert(1)";
  context.drawImage(pad.element, 0, 0);
  context.filter = "none";
  if (!META.ink || !byId("pad-centre").checked) return copy;
  const box = findInk(context.getImageData(0, 0, pad.side, pad.side).data);
  if (!box) return copy;
  const scale = (META.ink.side * pad.side) / box.side;
  const moved = make("canvas", { width: pad.side, height: pad.side });
  const target = moved.getContext("2d", { willReadFrequently: true });
  target.fillRect(0, 0, pad.side, pad.side);
  target.imageSmoothingQuality = "high";
  target.setTransform(scale, 0, 0, scale, META.ink.x * pad.side - scale * box.x, META.ink.y * pad.side - scale * box.y);
  target.drawImage(copy, 0, 0);
  return moved;
}

/** Return the size of what is drawn, and the centre of its mass. */
function findInk(data) {
  let [left, right, top, bottom, mass, across, down] = [Infinity, -1, Infinity, -1, 0, 0, 0];
  for (let y = 0; y < pad.side; y++) {
    for (let x = 0; x < pad.side; x++) {
      const value = data[4 * (y * pad.side + x)];
      if (value < 52) continue;
      [left, right, top, bottom] = [Math.min(left, x), Math.max(right, x), Math.min(top, y), Math.max(bottom, y)];
      mass += value;
      across += value * x;
      down += value * y;
    }
  }
  return mass ? { side: Math.max(right - left, bottom - top) + 1, x: across / mass + 0.5, y: down / mass + 0.5 } : null;
}

function listenToPen() {
  let last = null;
  const place = (event) => {
    const box = pad.element.getBoundingClientRect();
    return [((event.clientX - box.left) * pad.side) / box.width, ((event.clientY - box.top) * pad.side) / box.height];
  };
  const stroke = (event) => {
    const point = place(event);
    const context = pad.element.getContext("2d");
    context.strokeStyle = "#fff";
    context.lineWidth = Number(byId("pad-pen").value);
    context.lineCap = context.lineJoin = "round";
    context.beginPath();
    context.moveTo(...(last ?? point));
    context.lineTo(...point);
    context.stroke();
    last = point;
    judgeImage();
  };
  pad.element.addEventListener("pointerdown", (event) => {
    if (!pad.drawn) clearPad();
    byId("pad-invert").checked = false;
    pad.drawn = true;
    pad.element.setPointerCapture(event.pointerId);
    last = null;
    stroke(event);
  });
  pad.element.addEventListener("pointermove", (event) => event.buttons & 1 && pad.drawn && stroke(event));
}

/** Draw a file on the pad, whole and centred. */
async function openImage(file) {
  let picture;
  try {
    picture = await createImageBitmap(file);
  } catch {
    return announce(`${file.name || "This"} is no image that the browser can read.`);
  }
  clearPad();
  const scale = pad.side / Math.max(picture.width, picture.height);
  const size = [picture.width * scale, picture.height * scale];
  const context = pad.element.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(picture, (pad.side - size[0]) / 2, (pad.side - size[1]) / 2, ...size);
  const corner = context.getImageData((pad.side - size[0]) / 2 + 2, (pad.side - size[1]) / 2 + 2, 1, 1).data;
  byId("pad-invert").checked = Boolean(META.ink) && corner[0] + corner[1] + corner[2] > 384;
  await judgeImage();
}

function useRow(i) {
  clearPad();
  pad.row = i;
  const small = make("canvas");
  drawPicture(small, rowValues(i));
  const context = pad.element.getContext("2d");
  context.imageSmoothingEnabled = false;
  context.drawImage(small, 0, 0, pad.side, pad.side);
  context.imageSmoothingEnabled = true;
  return judgeImage();
}

function startImage() {
  byId("own-image").hidden = false;
  const grey = META.image[0] === 1;
  byId("own-title").textContent = grey ? "Draw or drop an image" : "Drop an image";
  byId("own-help").textContent = `${grey ? "Draw on the black square, or open, drop or paste an image" : "Open, drop or paste an image"}; the answer follows at once. It is brought to ${META.image[2]}×${META.image[1]} pixels, as the training images are.`;
  for (const id of ["pad-pen-label", "pad-invert-label"]) byId(id).hidden = !grey;
  byId("pad-centre-label").hidden = !META.ink;
  byId("rebuilt-figure").hidden = META.kind === "ddgm";
  clearPad();
  if (grey) listenToPen();
  byId("pad-clear").addEventListener("click", () => {
    clearPad();
    byId("answer").hidden = true;
    byId("seen").replaceChildren();
    byId("rebuilt").replaceChildren();
  });
  byId("pad-row").addEventListener("click", () => useRow(Math.max(state.row, 0)));
  byId("pad-file").addEventListener("change", (event) => event.target.files[0] && openImage(event.target.files[0]));
  for (const id of ["pad-invert", "pad-centre"]) byId(id).addEventListener("change", () => judgeImage());
  const drop = byId("own-card");
  drop.addEventListener("dragover", (event) => {
    event.preventDefault();
    byId("drop").classList.add("over");
  });
  drop.addEventListener("dragleave", () => byId("drop").classList.remove("over"));
  drop.addEventListener("drop", (event) => {
    event.preventDefault();
    byId("drop").classList.remove("over");
    if (event.dataTransfer.files[0]) openImage(event.dataTransfer.files[0]);
  });
  addEventListener("paste", (event) => {
    const file = [...event.clipboardData.files].find((item) => item.type.startsWith("image/"));
    if (file) openImage(file);
  });
}
