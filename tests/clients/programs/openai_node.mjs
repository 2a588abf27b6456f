// openai-node; see `stories.py`.
import { CITY, MODEL, QUESTION, load, raised, serve, version } from "./stories.mjs";

const { default: OpenAI } = await load("openai");
const tools = [{ type: "function", function: { name: "get_weather", description: "Today's", parameters: CITY } }];

const clientOf = (url, options = {}) => new OpenAI({ baseURL: `${url}/v1`, apiKey: "unused", maxRetries: 0, ...options });
const ask = (content = QUESTION) => [{ role: "user", content }];

await serve({
  about: () => ({ openai: version("openai"), node: process.version }),

  models: async ({ url }) => {
    const names = [];
    for await (const model of clientOf(url).models.list()) names.push(model.id);
    return { models: names };
  },

  whole: async ({ url, key = "unused", model = MODEL, content, ...more }) => {
    const answer = await clientOf(url, { apiKey: key }).chat.completions.create({ model, messages: ask(content), ...more });
    return {
      text: answer.choices[0].message.content,
      finish: answer.choices[0].finish_reason,
      prompt_tokens: answer.usage.prompt_tokens,
      completion_tokens: answer.usage.completion_tokens,
    };
  },

  streamed: async ({ url, model = MODEL, content, ...more }) => {
    const body = { model, messages: ask(content), stream: true, stream_options: { include_usage: true }, ...more };
    let text = "", finish = null, usage = null;
    for await (const chunk of await clientOf(url).chat.completions.create(body)) {
      text += chunk.choices[0]?.delta.content ?? "";
      finish = chunk.choices[0]?.finish_reason ?? finish;
      usage = chunk.usage ?? usage;
    }
    return { text, finish, prompt_tokens: usage.prompt_tokens, completion_tokens: usage.completion_tokens };
  },

  tool: async ({ url }) => {
    const answer = await clientOf(url).chat.completions.create({ model: MODEL, messages: ask(), tools });
    const [call] = answer.choices[0].message.tool_calls;
    return { name: call.function.name, arguments: JSON.parse(call.function.arguments), finish: answer.choices[0].finish_reason };
  },

  // The library's own accumulator, which is stricter than a loop over the chunks.
  tool_streamed: async ({ url }) => {
    const answer = await clientOf(url).chat.completions.stream({ model: MODEL, messages: ask(), tools }).finalChatCompletion();
    const [call] = answer.choices[0].message.tool_calls;
    return { name: call.function.name, arguments: JSON.parse(call.function.arguments), finish: answer.choices[0].finish_reason };
  },

  cut: async ({ url, extra = {} }) => {
    let text = "";
    const body = { model: MODEL, messages: ask(), stream: true, ...extra };
    try {
      for await (const chunk of await clientOf(url).chat.completions.create(body)) {
        text += chunk.choices[0].delta.content ?? "";
      }
    } catch (error) {
      return { text, ...raised(error) };
    }
    return { text, raised: null };
  },

  leave: async ({ url, extra = {} }) => {
    const stream = await clientOf(url).chat.completions.create({ model: MODEL, messages: ask(), stream: true, ...extra });
    let number = 0;
    for await (const _ of stream) if (++number === 3) stream.controller.abort();
    return { left: true };
  },

  // A time-out of the client's own, before the engine has said anything.
  give_up: async ({ url }) => {
    await clientOf(url, { timeout: 1500 }).chat.completions.create({ model: MODEL, messages: ask() });
    return { raised: null };
  },

  // As the client comes: it tries again by itself.
  patient: async ({ url, request_id }) => {
    const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "unused", defaultHeaders: { "X-Request-Id": request_id } });
    return { text: (await client.chat.completions.create({ model: MODEL, messages: ask() })).choices[0].message.content };
  },
});
