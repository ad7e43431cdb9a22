/** Tensors of an answer, out of its bytes: the format safetensors, as far as the page is sent it. */

const ARRAYS = { F32: Float32Array, U8: Uint8Array };

/**
 * @typedef {{shape: number[], values: Float32Array | Uint8Array}} Tensor
 * @param {ArrayBuffer} buffer eight bytes of length, a JSON header of that length, and the numbers
 * @returns {{answer: any, tensors: Record<string, Tensor>}} the JSON part of the answer, and tensors by name
 */
export function parseTensors(buffer) {
  const size = Number(new DataView(buffer).getBigUint64(0, true));
  const { __metadata__: metadata, ...entries } = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, size)));
  const tensors = {};
  for (const [name, { dtype, shape, data_offsets: [begin, end] }] of Object.entries(entries)) {
    // A copy: a view would keep the whole answer in memory, and must be aligned.
    tensors[name] = { shape, values: new ARRAYS[dtype](buffer.slice(8 + size + begin, 8 + size + end)) };
  }
  return { answer: JSON.parse(metadata.answer), tensors };
}

/**
 * Weights of square roots in a byte: scale x (code / 255)^2, with a scale per row (docs/formats.md).
 *
 * @param {Record<string, Tensor>} tensors
 * @param {string} name of the codes
 * @returns {Tensor}
 */
export function decodeRoots(tensors, name) {
  const { shape, values: codes } = tensors[name];
  const scales = tensors[`${name}.scale`].values;
  const columns = shape[shape.length - 1];
  const values = new Float32Array(codes.length);
  for (let row = 0, at = 0; row < scales.length; row++) {
    for (let column = 0; column < columns; column++, at++) values[at] = scales[row] * (codes[at] / 255) ** 2;
  }
  return { shape, values };
}
