// Runs the original classifier, nsfwjs on TensorFlow.js' own CPU backend, over raw pictures. Called by nsfwjs_reference.py.
//   node nsfwjs_reference.cjs FOLDER     FOLDER/index.json: [{"file", "height", "width"}]; files: uint8 RGB, row by row
// Writes FOLDER/outputs.json: {"versions", "outputs": {file: five probabilities}}. Needs `npm install nsfwjs@4.4.0 @tensorflow/tfjs@4.22.0`.
const fs = require("fs");
const path = require("path");
const { createRequire } = require("module");

const find = createRequire(path.join(process.cwd(), "index.js")); // packages of the folder it is started in
const tf = find("@tensorflow/tfjs");
const nsfw = find("nsfwjs/core");
const { MobileNetV2MidModel } = find("nsfwjs/models/mobilenet_v2_mid");

async function main(folder) {
  await tf.setBackend("cpu");
  console.info = () => {};
  const model = await nsfw.load("MobileNetV2Mid", { modelDefinitions: [MobileNetV2MidModel] });
  const outputs = {};
  for (const entry of JSON.parse(fs.readFileSync(path.join(folder, "index.json"), "utf8"))) {
    const bytes = fs.readFileSync(path.join(folder, entry.file));
    const picture = tf.tensor3d(new Int32Array(bytes), [entry.height, entry.width, 3], "int32"); // as tf.browser.fromPixels gives it
    outputs[entry.file] = Array.from(await model.infer(picture).data());
  }
  const versions = `nsfwjs 4.4.0, TensorFlow.js ${tf.version.tfjs} (cpu), Node ${process.version}`;
  fs.writeFileSync(path.join(folder, "outputs.json"), JSON.stringify({ versions, outputs }));
}

main(process.argv[2]);
