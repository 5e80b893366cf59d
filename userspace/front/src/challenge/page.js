"use strict";
// SHA3-256 (FIPS 202) of 56 bytes, which are one block: the challenge's 48, and a nonce of 8. A lane of 64 bits is two
// numbers of 32 here, low half first.
function solver(challenge) {
  const ROTATIONS = [1, 3, 6, 10, 15, 21, 28, 36, 45, 55, 2, 14, 27, 41, 56, 8, 25, 43, 62, 18, 39, 61, 20, 44];
  const LANES = [10, 7, 11, 17, 18, 3, 5, 16, 8, 21, 24, 4, 15, 23, 19, 13, 12, 2, 20, 14, 22, 9, 6, 1];
  const CONSTANTS = [
    0x00000001, 0x00000000, 0x00008082, 0x00000000, 0x0000808a, 0x80000000, 0x80008000, 0x80000000,
    0x0000808b, 0x00000000, 0x80000001, 0x00000000, 0x80008081, 0x80000000, 0x00008009, 0x80000000,
    0x0000008a, 0x00000000, 0x00000088, 0x00000000, 0x80008009, 0x00000000, 0x8000000a, 0x00000000,
    0x8000808b, 0x00000000, 0x0000008b, 0x80000000, 0x00008089, 0x80000000, 0x00008003, 0x80000000,
    0x00008002, 0x80000000, 0x00000080, 0x80000000, 0x0000800a, 0x00000000, 0x8000000a, 0x80000000,
    0x80008081, 0x80000000, 0x00008080, 0x80000000, 0x80000001, 0x00000000, 0x80008008, 0x80000000,
  ];
  const block = new Int32Array(50);
  const bytes = new DataView(challenge.buffer);
  for (let word = 0; word < 12; word++) block[word] = bytes.getInt32(4 * word, true);
  // The padding: 01, then 1, zeros and a last 1 at the end of the rate of 136 bytes.
  block[14] = 0x06;
  block[33] = 0x80000000 | 0;
  const state = new Int32Array(50);
  const column = new Int32Array(10);
  const swapped = (word) =>
    ((word << 24) | ((word & 0xff00) << 8) | ((word >>> 8) & 0xff00) | (word >>> 24)) | 0;

  // How many zero bits the hash begins with; the nonce is a big-endian number of two halves.
  return function zeroBits(high, low) {
    state.set(block);
    state[12] = swapped(high);
    state[13] = swapped(low);
    for (let round = 0; round < 48; round += 2) {
      for (let x = 0; x < 10; x++) {
        column[x] = state[x] ^ state[x + 10] ^ state[x + 20] ^ state[x + 30] ^ state[x + 40];
      }
      for (let x = 0; x < 10; x += 2) {
        const before = (x + 8) % 10, after = (x + 2) % 10;
        const one = column[before] ^ ((column[after] << 1) | (column[after + 1] >>> 31));
        const other = column[before + 1] ^ ((column[after + 1] << 1) | (column[after] >>> 31));
        for (let y = x; y < 50; y += 10) {
          state[y] ^= one;
          state[y + 1] ^= other;
        }
      }
      let low = state[2], high = state[3];
      for (let step = 0; step < 24; step++) {
        // None of the rotations is a multiple of 32, so both shifts are below 32.
        const lane = 2 * LANES[step], turn = ROTATIONS[step] & 31;
        const nextLow = state[lane], nextHigh = state[lane + 1];
        if (ROTATIONS[step] >= 32) [low, high] = [high, low];
        state[lane] = (low << turn) | (high >>> (32 - turn));
        state[lane + 1] = (high << turn) | (low >>> (32 - turn));
        low = nextLow;
        high = nextHigh;
      }
      for (let y = 0; y < 50; y += 10) {
        for (let x = 0; x < 10; x++) column[x] = state[y + x];
        for (let x = 0; x < 10; x++) state[y + x] ^= ~column[(x + 2) % 10] & column[(x + 4) % 10];
      }
      state[0] ^= CONSTANTS[round];
      state[1] ^= CONSTANTS[round + 1];
    }
    const first = swapped(state[0]);
    return first !== 0 ? Math.clz32(first) : 32 + Math.clz32(swapped(state[1]));
  };
}

// The 48 bytes of a challenge's text (RFC 4648, section 5).
function decoded(text) {
  const plain = atob(text.replace(/-/g, "+").replace(/_/g, "/"));
  return Uint8Array.from(plain, (character) => character.charCodeAt(0));
}

// Tells the nonce, or how many were tried without it. In slices, so that the page stays alive.
function search(text, bits, told) {
  const zeroBits = solver(decoded(text));
  const first = (Math.random() * 0x100000000) >>> 0;
  let tried = 0;
  function slice() {
    const end = Date.now() + 40;
    do {
      for (let count = 0; count < 64; count++, tried++) {
        if (zeroBits(first, tried) >= bits) {
          const digits = (number) => (number >>> 0).toString(16).padStart(8, "0");
          told(digits(first) + digits(tried), tried + 1);
          return;
        }
      }
    } while (Date.now() < end);
    told(null, tried);
    setTimeout(slice, 0);
  }
  slice();
}

if (typeof document !== "undefined") {
  const form = document.getElementById("answer");
  const bits = Number(form.dataset.bits);
  const progress = document.getElementById("progress");
  const text = document.getElementById("state");
  progress.hidden = false;
  search(form.elements.challenge.value, bits, function (nonce, tried) {
    // The chance that it would have been found by now: it nears the end and never stands still.
    progress.value = 1 - Math.exp(-tried / 2 ** bits);
    text.textContent = nonce === null ? "Your browser is solving a puzzle." : "Solved.";
    if (nonce !== null) {
      form.elements.nonce.value = nonce;
      form.submit();
    }
  });
}
