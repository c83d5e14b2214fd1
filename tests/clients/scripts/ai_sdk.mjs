import assert from "node:assert/strict";
// setup
import { createOpenAI } from "@ai-sdk/openai";

const openai = createOpenAI(); // reads OPENAI_BASE_URL and OPENAI_API_KEY
const model = openai("demo");
// end of setup
import { embedMany, generateText, Output, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";

const Dog = z.object({ name: z.string(), age: z.number().int() });
const weather = tool({
  description: "The weather of a place",
  inputSchema: z.object({ place: z.string() }),
  execute: async () => process.env.WEATHER,
});

const answer = await generateText({ model, prompt: "What is the capital of France?", temperature: 0 });
assert.match(answer.text, /Paris/);
console.log("passed: chat");

const streamed = streamText({ model, prompt: "What is the capital of France?", temperature: 0 });
let text = "";
for await (const part of streamed.textStream) text += part;
assert.equal(text, answer.text);
assert((await streamed.usage).totalTokens > 0);
console.log("passed: stream");

// The second turn names what the first one returned by item_reference.
const messages = [{ role: "user", content: "What is the capital of France?" }, ...answer.response.messages];
messages.push({ role: "user", content: "And of Spain?" });
assert((await generateText({ model, messages, maxOutputTokens: 20 })).text);
console.log("passed: second turn");

const tools = { weather };
const chat = openai("chat");
const prompt = process.env.ASK_WEATHER;
const told = await generateText({ model: chat, prompt, tools, stopWhen: stepCountIs(3) });
assert.equal(told.text, "It is sunny in Paris.");
const steps = streamText({ model: chat, prompt, tools, stopWhen: stepCountIs(3) });
let said = "";
for await (const part of steps.textStream) said += part;
assert.equal(said, "It is sunny in Paris.");
console.log("passed: tools");

const dog = await generateText({ model, prompt: "Invent a dog.", output: Output.object({ schema: Dog }) });
assert.equal(typeof dog.output.age, "number");
console.log("passed: structured output");

const place = z.object({ place: z.string(), degrees: z.number() });
const typed = await generateText({
  model: chat,
  prompt,
  tools: { weather: tool({ ...weather, execute: async () => process.env.WEATHER_TYPED }) },
  output: Output.object({ schema: place }),
  stopWhen: stepCountIs(3),
});
assert.deepEqual(typed.output, { place: "Paris", degrees: 21 });
console.log("passed: structured output with tools");

const { embeddings } = await embedMany({ model: openai.embedding("minilm"), values: ["a lamp", "a light"] });
assert.deepEqual(embeddings.map((each) => each.length), [384, 384]);
console.log("passed: embeddings");

const old = await generateText({ model: openai.chat("demo"), prompt: "What is the capital of France?", temperature: 0 });
assert.match(old.text, /Paris/);
console.log("passed: chat completions");
