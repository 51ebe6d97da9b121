// Posts to "/" with node-dtls-client alone, which takes a list of suites ("": all it has): MODULE HOST PORT IDENTITY KEY SUITE PAYLOAD...
// Prints the code of every answer.
"use strict";

const [, , module_path, host, port, identity, key, suite, ...payloads] = process.argv;
const { dtls } = require(module_path);

const socket = dtls.createSocket({
    type: "udp4", address: host, port: Number(port), psk: { [identity]: key },
    ...(suite && { ciphers: [suite] }),
});
let sent = 0;

function ask() {
    if (sent === payloads.length) {
        socket.close(() => process.exit(0));
        return;
    }
    sent += 1;
    socket.send(Buffer.concat([Buffer.from([0x42, 0x02, 0x21, sent, 0x6e, sent, 0xff]), Buffer.from(payloads[sent - 1])]));
}

socket.on("connected", ask);
socket.on("message", (answer) => {
    if (answer[2] === 0x21 && answer[3] === sent) {
        console.log(`${answer[1] >> 5}.${String(answer[1] & 31).padStart(2, "0")}`);
        ask();
    }
});
socket.on("error", (error) => { console.error(error); process.exit(1); });
