import assert from "node:assert/strict";
// setup
import OpenAI from "openai";

const client = new OpenAI(); // reads OPENAI_BASE_URL and OPENAI_API_KEY
const model = "demo";
// end of setup
import { zodResponseFormat, zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";

const Dog = z.object({ name: z.string(), age: z.number().int() });
const parameters = { type: "object", properties: { place: { type: "string" } }, required: ["place"] };
const messages = [{ role: "user", content: "What is the capital of France?" }];
const options = { model, messages, temperature: 0, max_tokens: 30 };

const names = [];
for await (const each of client.models.list()) names.push(each.id);
assert(names.includes("demo") && names.includes("minilm"));
console.log("passed: models");

const answer = await client.chat.completions.create(options);
assert.match(answer.choices[0].message.content, /Paris/);
console.log("passed: chat");

const stream = client.chat.completions.stream(options);
let text = "";
stream.on("content", (delta) => (text += delta));
assert.equal(await stream.finalContent(), text);
assert.equal(text, answer.choices[0].message.content);
console.log("passed: stream");

const runner = client.chat.completions.runTools({
  model: "chat",
  messages: [{ role: "user", content: process.env.ASK_WEATHER }],
  tools: [
    {
      type: "function",
      function: { name: "weather", parameters, parse: JSON.parse, function: () => process.env.WEATHER },
    },
  ],
});
assert.equal(await runner.finalContent(), "It is sunny in Paris.");
console.log("passed: tools");

const invent = [{ role: "user", content: "Invent a dog." }];
const dog = await client.chat.completions.parse({ model, messages: invent, response_format: zodResponseFormat(Dog, "dog") });
assert.equal(typeof dog.choices[0].message.parsed.age, "number");
console.log("passed: structured output");

const { data } = await client.embeddings.create({ model: "minilm", input: ["a lamp", "a light"] });
assert.deepEqual(data.map((each) => each.embedding.length), [384, 384]);
console.log("passed: embeddings");

const first = await client.responses.create({ model, input: "Hello.", max_output_tokens: 20 });
const second = client.responses.stream({ model, input: "Go on.", previous_response_id: first.id, max_output_tokens: 20 });
assert.equal((await second.finalResponse()).previous_response_id, first.id);
const parsed = await client.responses.parse({ model, input: "Invent a dog.", text: { format: zodTextFormat(Dog, "dog") } });
assert.equal(typeof parsed.output_parsed.age, "number");
console.log("passed: responses");
