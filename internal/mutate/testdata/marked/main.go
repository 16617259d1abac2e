// Marked has a planted bug, which must not be in it without the tag.
package main

import (
	"fmt"

	"github.com/balsa-run/balsa/internal/mutate"
)

func main() {
	if mutate.On(mutate.NoFsync) {
		fmt.Println("a planted bug that must not be here")
	}
	fmt.Println(mutate.Built)
}
