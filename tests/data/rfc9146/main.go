// Prints records with Connection IDs (RFC 9146) as pion seals them, and what is in them, as JSON: ../rfc9146.json.
//
//	cd tests/data/rfc9146 && go run . >../rfc9146.json
//
// Keys, randoms, CIDs and contents are counted bytes, so that every run prints the same.
package main

import (
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"encoding/json"
	"hash"
	"log"
	"os"

	"github.com/pion/dtls/v3/pkg/crypto/ciphersuite"
	"github.com/pion/dtls/v3/pkg/crypto/prf"
	"github.com/pion/dtls/v3/pkg/protocol"
	"github.com/pion/dtls/v3/pkg/protocol/recordlayer"
)

const (
	saltBytes = 4
	epoch     = 1
	alert     = 21
	handshake = 22
	data      = 23
)

type sealer interface {
	Encrypt(*recordlayer.RecordLayer, []byte) ([]byte, error)
}

// A suite of the gateway's.
type suite struct {
	name     string
	keyBytes int
	tagBytes int
	gcm      bool
	hash     func() hash.Hash
}

// What is in a record.
type record struct {
	ByClient    bool   `json:"by_client"`
	CID         string `json:"cid"`
	Sequence    uint64 `json:"sequence"`
	ContentType int    `json:"content_type"`
	Content     string `json:"content"`
	Zeros       uint   `json:"zeros"`
	Record      string `json:"record"`
}

// The records of one association.
type association struct {
	Suite        string   `json:"suite"`
	MasterSecret string   `json:"master_secret"`
	ClientRandom string   `json:"client_random"`
	ServerRandom string   `json:"server_random"`
	Records      []record `json:"records"`
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

func counted(from byte, size int) []byte {
	out := make([]byte, size)
	for at := range out {
		out[at] = from + byte(at)
	}
	return out
}

func (s suite) sealer(key, salt []byte) sealer {
	if s.gcm {
		made, err := ciphersuite.NewGCM(key, salt, key, salt)
		check(err)
		return made
	}
	made, err := ciphersuite.NewCCM(ciphersuite.CCMTagLen(s.tagBytes), key, salt, key, salt)
	check(err)
	return made
}

// Seals content of a type for a peer that wants this CID; with none the record is as RFC 6347 has it.
func seal(by sealer, cid []byte, sequence uint64, kind int, content []byte, zeros uint) []byte {
	header := recordlayer.Header{
		ContentType:    protocol.ContentType(kind),
		Version:        protocol.Version1_2,
		Epoch:          epoch,
		SequenceNumber: sequence,
	}
	fragment := content
	if len(cid) > 0 {
		inner := recordlayer.InnerPlaintext{Content: content, RealType: protocol.ContentType(kind), Zeros: zeros}
		var err error
		fragment, err = inner.Marshal()
		check(err)
		header.ContentType, header.ConnectionID = protocol.ContentTypeConnectionID, cid
	}
	header.ContentLen = uint16(len(fragment))
	raw, err := header.Marshal()
	check(err)
	sealed, err := by.Encrypt(&recordlayer.RecordLayer{Header: header}, append(raw, fragment...))
	check(err)
	return sealed
}

func (s suite) records(client, server sealer) []record {
	var made []record
	add := func(byClient bool, cidBytes int, sequence uint64, kind, contentBytes int, zeros uint) {
		by, cid, content := server, counted(0xc0, cidBytes), counted(0x01, contentBytes)
		if byClient {
			by = client
		}
		made = append(made, record{
			byClient, hex.EncodeToString(cid), sequence, kind, hex.EncodeToString(content), zeros,
			hex.EncodeToString(seal(by, cid, sequence, kind, content, zeros)),
		})
	}
	for _, byClient := range []bool{true, false} {
		for _, cidBytes := range []int{0, 1, 6, 20} {
			add(byClient, cidBytes, 0, handshake, 24, 0)
			add(byClient, cidBytes, 1, data, 40, 0)
			add(byClient, cidBytes, 1<<32+5, alert, 2, 0)
			add(byClient, cidBytes, 1<<48-1, data, 0, 0)
			if cidBytes > 0 {
				add(byClient, cidBytes, 2, data, 13, 1)
				add(byClient, cidBytes, 3, data, 16, 31)
				add(byClient, cidBytes, 4, alert, 2, 200)
			}
		}
	}
	add(false, 255, 9, data, 3, 0) // the longest CID that a client can want
	return made
}

func main() {
	var all []association
	for _, s := range []suite{
		{"PSK-AES128-CCM8", 16, 8, false, sha256.New},
		{"PSK-AES256-CCM8", 32, 8, false, sha256.New},
		{"PSK-AES128-CCM", 16, 16, false, sha256.New},
		{"PSK-AES256-CCM", 32, 16, false, sha256.New},
		{"PSK-AES128-GCM-SHA256", 16, 16, true, sha256.New},
		{"PSK-AES256-GCM-SHA384", 32, 16, true, sha512.New384},
	} {
		secret, ofClient, ofServer := counted(0x10, 48), counted(0x40, 32), counted(0x80, 32)
		keys, err := prf.GenerateEncryptionKeys(secret, ofClient, ofServer, 0, s.keyBytes, saltBytes, s.hash)
		check(err)
		all = append(all, association{
			s.name, hex.EncodeToString(secret), hex.EncodeToString(ofClient), hex.EncodeToString(ofServer),
			s.records(s.sealer(keys.ClientWriteKey, keys.ClientWriteIV), s.sealer(keys.ServerWriteKey, keys.ServerWriteIV)),
		})
	}
	out := json.NewEncoder(os.Stdout)
	out.SetIndent("", " ")
	check(out.Encode(all))
}
