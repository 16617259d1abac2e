//go:build helpers

package helpers

import _ "embed"

//go:embed bin/balsa-shim
var shim []byte

//go:embed bin/balsa-runc
var runc []byte

func embedded() (map[string][]byte, error) {
	return map[string][]byte{"balsa-shim": shim, "balsa-runc": runc}, nil
}
