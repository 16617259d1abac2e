//go:build helpers

package helpers

import _ "embed"

// They are strings, not slices, so that the linker puts them with what is read
// only: giveBack relies on nobody having written there.
var (
	//go:embed bin/balsa-shim
	shim string
	//go:embed bin/balsa-runc
	runc string
)

func embedded() (map[string]string, error) {
	return map[string]string{"balsa-shim": shim, "balsa-runc": runc}, nil
}

// release lets the pages of the programs go, which nobody looks at again until
// the next start: 8 MB of a process that runs for months.
func release() {
	giveBack(shim)
	giveBack(runc)
}
