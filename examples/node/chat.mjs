// A chat: reads a line, streams the answer, and remembers the conversation until the context is full.
//
//     npm install && node chat.mjs model.gguf [device]
import readline from "node:readline";
import { Model } from "./kigo.mjs";

async function main(path, device = "auto") {
  if (!path) throw new Error("usage: chat.mjs model.gguf [device]");
  const model = await Model.load(path, { device });
  try {
    const conversation = [];
    process.stdout.write("> ");
    for await (const line of readline.createInterface({ input: process.stdin })) {
      conversation.push({ role: "user", content: line });
      let answer = "";
      for await (const piece of model.generate(JSON.stringify(conversation), { prompt_format: "chat" })) {
        process.stdout.write(piece);
        answer += piece;
      }
      conversation.push({ role: "assistant", content: answer });
      process.stdout.write("\n> ");
    }
  } finally {
    model.close();
  }
}

main(...process.argv.slice(2)).catch((error) => {
  console.error(`chat: ${error.message}`);
  process.exitCode = 1;
});
