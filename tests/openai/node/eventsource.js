// Follows a result with an EventSource; prints every event as JSON, [type, id, data], one a line.
import { EventSource } from "eventsource";

const source = new EventSource(process.argv[2]);
for (const type of ["message", "delta", "completed", "failed"])
  source.addEventListener(type, ({ lastEventId, data }) => {
    console.log(JSON.stringify([type, lastEventId, data]));
    if (type === "completed" || type === "failed") source.close();
  });
source.addEventListener("error", ({ code, message }) => {
  console.error(code, message);
  process.exit(1);
});
