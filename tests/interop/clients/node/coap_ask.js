// One request with the package "coap": MODULE REQUEST, the request in JSON: {host, port, path, query, method, non,
// payload, options: [[name, hex]...], observe: how many notifications to wait for}.  Prints a line of JSON for each answer.
"use strict";

const [, , module_path, text] = process.argv;
const coap = require(module_path);
const asked = JSON.parse(text);

const request = coap.request({
    hostname: asked.host,
    port: asked.port,
    pathname: asked.path,
    query: asked.query,
    method: asked.method,
    confirmable: !asked.non,
    observe: asked.observe > 0,
});

function show(code, payload, options) {
    const known = options.map((option) => [option.name, String(option.value)]);
    console.log(JSON.stringify({ code, payload: payload.toString("hex"), options: known }));
}

for (const [name, value] of asked.options) {
    request.setOption(name, Buffer.from(value, "hex"));
}
if (asked.payload.length > 2 * 1024) {
    request.setOption("Block1", Buffer.of(0x06)); // it cuts a body into blocks only if it is told their size
}
request.on("error", (error) => { console.error(error); process.exit(1); });
request.on("response", (response) => {
    if (asked.observe > 0 && typeof response.close === "function") {
        let left = asked.observe;
        response.on("data", (chunk) => {
            show(response.code, chunk, []);
            left -= 1;
            if (left === 0) {
                response.close();
                setTimeout(() => process.exit(0), 200);
            }
        });
    } else {
        show(response.code, response.payload, response.options);
        process.exit(0);
    }
});
request.end(Buffer.from(asked.payload, "hex"));
