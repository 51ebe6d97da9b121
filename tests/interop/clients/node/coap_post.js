// Posts to "/" with node-coap-client, which offers what node-dtls-client offers: MODULE HOST PORT IDENTITY KEY PAYLOAD...
// Prints the code of every answer.
"use strict";

const [, , module_path, host, port, identity, key, ...payloads] = process.argv;
const { CoapClient: coap } = require(module_path);

async function main() {
    coap.setSecurityParams(host, { psk: { [identity]: key } });
    for (const payload of payloads) {
        const answer = await coap.request(`coaps://${host}:${port}/`, "post", Buffer.from(payload));
        console.log(String(answer.code));
    }
    coap.reset();
}

main().then(() => process.exit(0), (error) => { console.error(error); process.exit(1); });
