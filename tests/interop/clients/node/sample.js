// What the published sample does: asks /bootstrap for identity, key and coaps URL, then posts over DTLS.
//
//     node sample.js MODULE coap://HOST:PORT TOPIC PAYLOAD...
//
// Prints the code and payload of the bootstrap answer, and the code of every other.
"use strict";

const [, , module_path, gateway, topic, ...payloads] = process.argv;
const { CoapClient: coap } = require(module_path);

async function main() {
    const bootstrap = await coap.request(`${gateway}/bootstrap`, "get");
    console.log(`${bootstrap.code} ${bootstrap.payload}`);
    const [iccid, key, url] = bootstrap.payload.toString().split(",");
    coap.setSecurityParams(new URL(url.replace("coaps:", "http:")).hostname, { psk: { [iccid]: key } });
    for (const payload of payloads) {
        const answer = await coap.request(`${url}/?t=${topic}`, "post", Buffer.from(payload));
        console.log(String(answer.code));
    }
    coap.reset();
}

main().then(() => process.exit(0), (error) => { console.error(error); process.exit(1); });
