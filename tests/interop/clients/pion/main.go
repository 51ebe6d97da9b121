// A DTLS client on pion: POSTs to "/" over one association and prints the code of every answer, or "silence".
//
//	pion HOST:PORT IDENTITY KEY SUITE CID_BYTES PAYLOAD...
//
// SUITE is a number, 0 for all it has.  CID_BYTES is how long a Connection ID it wants of its own: -1, it asks for none;
// 0, it takes one and wants none.  Between two payloads it waits for a line on stdin.  Flights and requests are repeated
// after 250 ms, 500 ms, and so on.
package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"log"
	"net"
	"os"
	"strconv"
	"time"

	"github.com/pion/dtls/v3"
)

const (
	patience     = 30 * time.Second // with a handshake
	tries        = 5                // of a request
	firstTimeout = 250 * time.Millisecond
)

func number(text string) int {
	value, err := strconv.Atoi(text)
	check(err)
	return value
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

func ask(connection net.Conn, id byte, payload string) string {
	header := []byte{0x42, 0x02, 0x41, id, 'p', id}
	request := append(append(append([]byte{}, header...), 0xff), payload...)
	answer := make([]byte, 2048)
	for try, timeout := 0, firstTimeout; try < tries; try, timeout = try+1, 2*timeout {
		_, err := connection.Write(request)
		check(err)
		check(connection.SetReadDeadline(time.Now().Add(timeout)))
		for {
			size, err := connection.Read(answer)
			var late net.Error
			if errors.As(err, &late) && late.Timeout() {
				break
			}
			check(err)
			if size >= 6 && bytes.Equal(answer[2:6], header[2:]) {
				return fmt.Sprintf("%d.%02d", answer[1]>>5, answer[1]&31)
			}
		}
	}
	return "silence"
}

func main() {
	log.SetFlags(0)
	if len(os.Args) < 7 {
		log.Fatal("HOST:PORT IDENTITY KEY SUITE CID_BYTES PAYLOAD...")
	}
	address, err := net.ResolveUDPAddr("udp", os.Args[1])
	check(err)
	config := &dtls.Config{
		PSK:             func([]byte) ([]byte, error) { return []byte(os.Args[3]), nil },
		PSKIdentityHint: []byte(os.Args[2]),
		CipherSuites: []dtls.CipherSuiteID{
			dtls.TLS_PSK_WITH_AES_128_CCM_8, dtls.TLS_PSK_WITH_AES_128_CCM, dtls.TLS_PSK_WITH_AES_256_CCM_8,
			dtls.TLS_PSK_WITH_AES_128_GCM_SHA256, dtls.TLS_PSK_WITH_AES_128_CBC_SHA256,
			dtls.TLS_ECDHE_PSK_WITH_AES_128_CBC_SHA256,
		},
		FlightInterval: firstTimeout,
	}
	if suite := number(os.Args[4]); suite != 0 {
		config.CipherSuites = []dtls.CipherSuiteID{dtls.CipherSuiteID(suite)}
	}
	if size := number(os.Args[5]); size == 0 {
		config.ConnectionIDGenerator = dtls.OnlySendCIDGenerator()
	} else if size > 0 {
		config.ConnectionIDGenerator = dtls.RandomCIDGenerator(size)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	connection, err := dtls.Dial("udp", address, config)
	check(err)
	check(connection.HandshakeContext(ctx))
	lines := bufio.NewScanner(os.Stdin)
	for at, payload := range os.Args[6:] {
		if at > 0 {
			lines.Scan()
		}
		fmt.Println(ask(connection, byte(at+1), payload))
	}
	check(connection.Close())
}
