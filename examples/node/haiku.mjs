// Writes a haiku that contains the current minute in words, which nobody can have written beforehand.
// A small model does not always obey, so up to 32 haiku are generated, each with a seed of its own.
//
//     npm install && node haiku.mjs model.gguf [device]
import { Model } from "./kigo.mjs";

const MAX_ATTEMPTS = 32;
const SMALL = (
  "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen " +
  "eighteen nineteen"
).split(" ");
const TENS = ["twenty", "thirty", "forty", "fifty"];

function minuteInWords(minute) {
  if (minute < 20) return SMALL[minute];
  const ten = TENS[Math.floor(minute / 10) - 2];
  return minute % 10 ? `${ten}-${SMALL[minute % 10]}` : ten;
}

/** Whether the text holds the whole word, "forty two" for "forty-two" included. */
function contains(text, word) {
  return new RegExp(`(?<![a-z-])${word.replace("-", "[- ]")}(?![a-z-])`, "i").test(text);
}

async function main(path, device = "auto") {
  if (!path) throw new Error("usage: haiku.mjs model.gguf [device]");
  const now = new Date();
  const word = minuteInWords(now.getMinutes());
  const prompt = `Write a haiku of three short lines about the number ${word}. Each line contains the word "${word}".`;
  console.log("minute:", word);
  const model = await Model.load(path, { device });
  try {
    for (let attempt = 1; attempt <= MAX_ATTEMPTS; attempt++) {
      const seed = Math.floor(now / 1000) * MAX_ATTEMPTS + attempt;
      let haiku = "";
      console.log();
      for await (const piece of model.generate(prompt, { prompt_format: "user", max_tokens: 48, seed })) {
        process.stdout.write(piece);
        haiku += piece;
      }
      console.log(`\n\n[attempt ${attempt}: ${contains(haiku, word) ? "yes" : "no"}]`);
      if (contains(haiku, word)) return;
    }
  } finally {
    model.close();
  }
  throw new Error(`none of ${MAX_ATTEMPTS} attempts contains "${word}"`);
}

main(...process.argv.slice(2)).catch((error) => {
  console.error(`haiku: ${error.message}`);
  process.exitCode = 1;
});
