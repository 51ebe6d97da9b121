// cidload - load generator for CoAP over DTLS 1.2 with Connection IDs (RFC 9146), on pion; the C one has none.
//
// Each of -n devices has a DTLS association and a socket of its own, and one CON POST outstanding, closed loop. Prints one
// JSON object: what the handshakes and a message cost on the wire (UDP payload), and what the server did in -t seconds.
package main

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log"
	"net"
	"os"
	"sort"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pion/dtls/v3"
)

const (
	atATime  = 32 // handshakes
	patience = 2 * time.Second
	ticks    = 100 // per second, of /proc/PID/stat
)

var (
	port     = flag.Int("p", 5684, "port on 127.0.0.1")
	sessions = flag.Int("n", 500, "devices")
	key      = flag.String("k", "", "the key of all of them")
	cid      = flag.Int("cid", -1, "bytes of the Connection ID wanted in records to us; 0: none; -1: ask for none at all")
	seconds  = flag.Float64("t", 8, "seconds measured")
	payload  = flag.Int("l", 64, "bytes of payload")
	server   = flag.Int("server-pid", 0, "process whose CPU time counts")
	format   = flag.String("i", "8988280666%09d", "identity, by number")
)

// A socket that counts what passes.
type counted struct {
	*net.UDPConn
	sent, received            atomic.Int64
	datagramsOut, datagramsIn atomic.Int64
}

func (c *counted) WriteTo(data []byte, to net.Addr) (int, error) {
	c.sent.Add(int64(len(data)))
	c.datagramsOut.Add(1)
	return c.UDPConn.WriteTo(data, to)
}

func (c *counted) ReadFrom(data []byte) (int, net.Addr, error) {
	size, from, err := c.UDPConn.ReadFrom(data)
	if err == nil {
		c.received.Add(int64(size))
		c.datagramsIn.Add(1)
	}
	return size, from, err
}

type device struct {
	socket *counted
	conn   *dtls.Conn
	delays []time.Duration
	lost   int
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

func connect(number int) *device {
	socket, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	check(err)
	config := &dtls.Config{
		PSK:             func([]byte) ([]byte, error) { return []byte(*key), nil },
		PSKIdentityHint: []byte(fmt.Sprintf(*format, number)),
		CipherSuites:    []dtls.CipherSuiteID{dtls.TLS_PSK_WITH_AES_128_CCM_8},
	}
	if *cid == 0 {
		config.ConnectionIDGenerator = dtls.OnlySendCIDGenerator()
	} else if *cid > 0 {
		config.ConnectionIDGenerator = dtls.RandomCIDGenerator(*cid)
	}
	made := &device{socket: &counted{UDPConn: socket}}
	made.conn, err = dtls.Client(made.socket, &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: *port}, config)
	check(err)
	ctx, cancel := context.WithTimeout(context.Background(), 10*patience)
	defer cancel()
	check(made.conn.HandshakeContext(ctx))
	return made
}

// Sends one request and waits for its answer.
func (d *device) ask(id uint16) bool {
	request := make([]byte, 0, 128)
	request = append(request, 0x44, 0x02)
	request = binary.BigEndian.AppendUint16(request, id)
	request = append(request, byte(id>>8), byte(id), 'c', 'l')
	request = append(append(request, 0xd3, 0x02), "t=b"...) // Uri-Query
	request = append(append(request, 0xff), make([]byte, *payload)...)
	_, err := d.conn.Write(request)
	check(err)
	check(d.conn.SetReadDeadline(time.Now().Add(patience)))
	answer := make([]byte, 256)
	for {
		size, err := d.conn.Read(answer)
		var late net.Error
		if errors.As(err, &late) && late.Timeout() {
			return false
		}
		check(err)
		if size >= 4 && binary.BigEndian.Uint16(answer[2:]) == id && answer[1] == 0x44 {
			return true
		}
	}
}

func cpuSeconds() float64 {
	if *server == 0 {
		return 0
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", *server))
	check(err)
	fields := strings.Fields(string(text)[strings.LastIndexByte(string(text), ')')+1:])
	user, _ := strconv.Atoi(fields[11])
	system, _ := strconv.Atoi(fields[12])
	return float64(user+system) / ticks
}

func main() {
	log.SetFlags(0)
	flag.Parse()
	devices := make([]*device, *sessions)
	var group sync.WaitGroup
	places := make(chan bool, atATime)
	for number := range devices {
		group.Add(1)
		places <- true
		go func(number int) {
			defer group.Done()
			devices[number] = connect(number)
			<-places
		}(number)
	}
	group.Wait()
	time.Sleep(200 * time.Millisecond)
	first := devices[0]
	out := map[string]any{
		"handshake_sent": first.socket.sent.Load(), "handshake_received": first.socket.received.Load(),
		"handshake_datagrams_out": first.socket.datagramsOut.Load(), "handshake_datagrams_in": first.socket.datagramsIn.Load(),
	}
	sent, received := first.socket.sent.Load(), first.socket.received.Load()
	if !first.ask(0xfff0) {
		log.Fatal("no answer")
	}
	out["message_sent"], out["message_received"] = first.socket.sent.Load()-sent, first.socket.received.Load()-received

	cpu, begun := cpuSeconds(), time.Now()
	end := begun.Add(time.Duration(*seconds * float64(time.Second)))
	for _, one := range devices {
		group.Add(1)
		go func(d *device) {
			defer group.Done()
			for id := uint16(1); time.Now().Before(end); id++ {
				asked := time.Now()
				if d.ask(id) {
					d.delays = append(d.delays, time.Since(asked))
				} else {
					d.lost++
				}
			}
		}(one)
	}
	group.Wait()
	elapsed, used := time.Since(begun).Seconds(), cpuSeconds()-cpu
	var delays []time.Duration
	lost := 0
	for _, one := range devices {
		delays = append(delays, one.delays...)
		lost += one.lost
	}
	sort.Slice(delays, func(a, b int) bool { return delays[a] < delays[b] })
	out["ok"], out["lost"] = len(delays), lost
	out["req_per_s"] = float64(len(delays)) / elapsed
	if used > 0 {
		out["per_cpu_second"] = float64(len(delays)) / used
	}
	if len(delays) > 0 {
		out["p50_ms"] = float64(delays[len(delays)/2].Microseconds()) / 1000
		out["p99_ms"] = float64(delays[len(delays)*99/100].Microseconds()) / 1000
	}
	check(json.NewEncoder(os.Stdout).Encode(out))
}
