// Kubeproxy programs services into nftables the way kube-proxy's nftables mode
// does, for `make bench-network` to measure Balsa's rules against: a chain a
// service that leads to one of a chain an endpoint, and a map from the service's
// address to its chain (pkg/proxy/nftables in Kubernetes' source, a service with
// an address of the cluster and nothing else). A changed service has its chain
// written anew; the chain of an endpoint that went is emptied with it, and
// deleted by a later transaction that does not count here.
//
// What it leaves out is kube-proxy's bookkeeping: its time is that of writing the
// rules down and of the kernel. The rules go to the kernel by `nft -f -`, as
// kube-proxy's do, or by the library that Balsa uses. It works in the network
// namespace that it is started in.
//
//	kubeproxy -out FILE -services N -endpoints N -changes N -by nft|netlink
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"time"

	_ "embed"
)

//go:embed base.nft
var base string

// Report is what was measured, in milliseconds.
type Report struct {
	FullMS   []float64 `json:"fullMS"`
	ChangeMS []float64 `json:"changeMS"`
}

// kernel takes transactions.
type kernel interface {
	// full writes every service after the fixed part.
	full(services []service) error
	// change writes a service whose endpoint gone is another one now.
	change(s service, gone endpoint) error
}

func main() {
	var out, by string
	var services, endpoints, changes int
	flag.StringVar(&out, "out", "", "file for the report")
	flag.StringVar(&by, "by", "nft", "nft or netlink")
	flag.IntVar(&services, "services", 100, "how many")
	flag.IntVar(&endpoints, "endpoints", 3, "of each service")
	flag.IntVar(&changes, "changes", 10, "endpoints to replace, one after the other")
	flag.Parse()
	report, err := run(by, makeServices(services, endpoints), changes)
	if err == nil {
		var text []byte
		if text, err = json.Marshal(report); err == nil {
			err = os.WriteFile(out, append(text, '\n'), 0o644)
		}
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "kubeproxy: %v\n", err)
		os.Exit(1)
	}
}

func run(by string, services []service, changes int) (report Report, err error) {
	if err := nft(base); err != nil {
		return report, err
	}
	defer func() { err = errors.Join(err, nft("delete table ip kube-proxy\n")) }()
	k, done, err := open(by)
	if err != nil {
		return report, err
	}
	defer done()
	began := time.Now()
	if err := k.full(services); err != nil {
		return report, err
	}
	report.FullMS = append(report.FullMS, milliseconds(began))
	if err := verify(services); err != nil {
		return report, err
	}
	for i := range changes {
		s := &services[i*7919%len(services)]
		gone := s.endpoints[0]
		s.replaceFirst(i)
		began := time.Now()
		if err := k.change(*s, gone); err != nil {
			return report, err
		}
		report.ChangeMS = append(report.ChangeMS, milliseconds(began))
		if err := nft("delete chain ip kube-proxy " + gone.chain + "\n"); err != nil {
			return report, err
		}
	}
	return report, verify(services)
}

func milliseconds(began time.Time) float64 {
	return float64(time.Since(began)) / float64(time.Millisecond)
}

func open(by string) (kernel, func(), error) {
	switch by {
	case "nft":
		return text{}, func() {}, nil
	case "netlink":
		return dial()
	}
	return nil, nil, fmt.Errorf("-by %s: want nft or netlink", by)
}

// nft runs a script as one transaction.
func nft(script string) error {
	command := exec.Command("nft", "-f", "-")
	command.Stdin = bytes.NewBufferString(script)
	if out, err := command.CombinedOutput(); err != nil {
		if len(out) > 2000 {
			out = out[:2000]
		}
		return fmt.Errorf("nft -f -: %w: %s", err, out)
	}
	return nil
}
