// Coredns is CoreDNS with the few plugins that `make bench-network` measures
// Balsa's resolver against: what a Corefile does not name has no part in an
// answer. The plugin "kubernetes" is not among them, since it needs the API
// server of Kubernetes.
//
//	coredns -conf Corefile
package main

import (
	"github.com/coredns/coredns/coremain"

	// A plugin of CoreDNS is known by being imported.
	_ "github.com/coredns/coredns/plugin/bind"
	_ "github.com/coredns/coredns/plugin/file"
	_ "github.com/coredns/coredns/plugin/hosts"
)

func main() { coremain.Run() }
