module coapgw/data/rfc9146

go 1.24.0

require github.com/pion/dtls/v3 v3.1.15

require (
	golang.org/x/crypto v0.48.0 // indirect
	golang.org/x/sys v0.41.0 // indirect
)
