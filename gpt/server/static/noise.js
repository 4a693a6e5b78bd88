// The luck of a draw. Sampling is Gumbel-max: of the tokens that the filters left, the one with the largest
// log-probability plus noise is drawn, and the noise depends on (seed, position, token id) and nothing else.

const WORD = 0xffffffffn;

/** Philox4x32-10 (Salmon et al., SC 2011): four counter words and two key words, as BigInt. */
function philox([c0, c1, c2, c3], [k0, k1]) {
  for (let round = 0; round < 10; round++) {
    const a = c0 * 0xd2511f53n, b = c2 * 0xcd9e8d57n;
    [c0, c1, c2, c3] = [(b >> 32n) ^ c1 ^ k0, b & WORD, (a >> 32n) ^ c3 ^ k1, a & WORD];
    [k0, k1] = [(k0 + 0x9e3779b9n) & WORD, (k1 + 0xbb67ae85n) & WORD];
  }
  return [c0, c1, c2, c3];
}

/** Gumbel(0, 1) noise of a token at a position, as `octavo.kernels.reference.gumbel_noise` defines it. */
export function luck(seed, position, id) {
  const key = [BigInt(seed) & WORD, (BigInt(seed) >> 32n) & WORD];
  const words = philox([BigInt(id >> 2), BigInt(position), 0n, 0n], key);
  const uniform = Math.min(Number(words[id % 4]) * 2 ** -32 + 2 ** -33, 1 - 2 ** -24);
  return -Math.log(-Math.log1p(-uniform));
}
