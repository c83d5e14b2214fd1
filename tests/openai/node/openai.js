// Streams a chat, a completion and a response with OpenAI's client; prints the text of each as JSON.
import OpenAI from "openai";

const [baseURL, prompt] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey: "sk-none", maxRetries: 0 });
const said = { chat: "", completion: "", response: "" };

const messages = [{ role: "user", content: prompt }];
for await (const chunk of await client.chat.completions.create({ model: "chat", messages, stream: true }))
  said.chat += chunk.choices[0].delta.content ?? "";
for await (const chunk of await client.completions.create({ model: "chat", prompt, stream: true }))
  said.completion += chunk.choices[0].text;
for await (const event of await client.responses.create({ model: "chat", input: prompt, stream: true }))
  if (event.type === "response.output_text.delta") said.response += event.delta;

console.log(JSON.stringify(said));
