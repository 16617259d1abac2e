module example.com/balsa-sdk

go 1.26.0

require github.com/balsa-run/balsa v0.0.0

require (
	connectrpc.com/connect v1.21.1 // indirect
	go.yaml.in/yaml/v3 v3.0.5 // indirect
	golang.org/x/crypto v0.57.0 // indirect
	golang.org/x/sys v0.48.0 // indirect
	google.golang.org/protobuf v1.36.12 // indirect
)

replace github.com/balsa-run/balsa => ../..
