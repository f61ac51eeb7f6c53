// The official Node SDK: usage node matrix.mjs BASE_URL; prints what each scenario gave.
import { createRequire } from "node:module";

const require = createRequire(process.env.SDK_MODULES + "/");
const { OpenAI } = require("openai");

const client = new OpenAI({ baseURL: process.argv[2], apiKey: "sk-the-clients-own-key", maxRetries: 2 });
const TOOLS = [{ type: "function", function: { name: "weather", parameters: { type: "object", properties: {} } } }];
const call = (name, options = {}) =>
  client.chat.completions.create({ model: "m", messages: [{ role: "user", content: name }], ...options });

async function failing(name) {
  try {
    return ["ok", (await call(name)).choices[0].message.content];
  } catch (error) {
    if (!(error instanceof OpenAI.APIError)) throw error;
    return [error.status, error.code, error.requestID];
  }
}

const seen = { chat: (await call("chat", { top_k: 3 })).choices[0].message.content };
seen.stream = "";
for await (const chunk of await call("stream", { stream: true, stream_options: { include_usage: true } })) {
  seen.stream += chunk.choices[0]?.delta?.content ?? "";
  seen.usage = chunk.usage?.total_tokens ?? seen.usage;
}
const made = (await call("tools", { tools: TOOLS, tool_choice: "auto" })).choices[0].message.tool_calls[0].function;
seen.tools = [made.name, made.arguments];
seen.tools_stream = "";
for await (const chunk of await call("tools_stream", { tools: TOOLS, stream: true }))
  for (const tool of chunk.choices[0]?.delta?.tool_calls ?? []) seen.tools_stream += tool.function.arguments;
seen.n = (await call("n", { n: 2 })).choices.map((choice) => choice.message.content);
const schema = { type: "json_schema", json_schema: { name: "s", schema: { type: "object" } } };
seen.json_schema = JSON.parse((await call("json_schema", { response_format: schema })).choices[0].message.content);
for (const name of ["error400", "error401", "error404", "error429_then_good", "error500_then_good", "breaks"])
  seen[name] = await failing(name);
const stream = await call("abort", { stream: true });
for await (const _ of stream) break;
stream.controller.abort();
seen.text = (await client.completions.create({ model: "m", prompt: "text" })).choices[0].text;
console.log(JSON.stringify(seen));
