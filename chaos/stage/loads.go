package stage

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/balsa-run/balsa/chaos/load"
	"github.com/balsa-run/balsa/chaos/world/host"
)

const loadStops = 120 * time.Second

// Writes is a load of writes by the operator, against all servers.
type Writes struct {
	process *host.Process
	out     string
}

// StartWrites begins to make ConfigMaps in a namespace, named after prefix.
func (s *Stage) StartWrites(chaos, namespace, prefix string) (*Writes, error) {
	w := &Writes{out: filepath.Join(s.Lab.Dir, prefix+"-writes.json")}
	var err error
	w.process, err = s.Operator.Start(prefix+"-writes", chaos, "load", "writes", "--config", s.Admin(),
		"--servers", strings.Join(s.Addresses(), ","), "--namespace", namespace, "--prefix", prefix, "--out", w.out)
	return w, err
}

// Stop ends the load and returns its report, once every promise in it was kept:
// nothing acknowledged is lost, nothing was invented.
func (w *Writes) Stop() (*load.WriteReport, error) {
	report := &load.WriteReport{}
	if err := errors.Join(w.process.Stop(loadStops), read(w.out, report)); err != nil {
		return nil, fmt.Errorf("load of writes: %w\n%s", err, w.process.Tail(5))
	}
	switch {
	case report.Acknowledged == 0:
		return report, fmt.Errorf("load of writes: none was acknowledged: %v", report.Errors)
	case len(report.Lost)+len(report.Phantoms) > 0:
		return report, fmt.Errorf("load of writes: lost %v, invented %v", report.Lost, report.Phantoms)
	}
	return report, nil
}

// Requests is a load of HTTP requests from a host.
type Requests struct {
	process *host.Process
	out     string
}

// StartRequests begins to ask for a URL from a host.
func (s *Stage) StartRequests(from *host.Host, chaos, url, name string) (*Requests, error) {
	r := &Requests{out: filepath.Join(s.Lab.Dir, name+"-requests.json")}
	var err error
	r.process, err = from.Start(name+"-requests", chaos, "load", "http", "--url", url, "--out", r.out)
	return r, err
}

// Stop ends the load and returns its report; that requests failed is for the
// caller to judge.
func (r *Requests) Stop() (*load.HTTPReport, error) {
	report := &load.HTTPReport{}
	if err := errors.Join(r.process.Stop(loadStops), read(r.out, report)); err != nil {
		return nil, fmt.Errorf("load of requests: %w\n%s", err, r.process.Tail(5))
	}
	if report.Requests == 0 {
		return report, errors.New("load of requests: none was made")
	}
	return report, nil
}

// Flows is a load of HTTP requests and datagrams from a host.
type Flows struct {
	process *host.Process
	out     string
}

// StartFlows begins to ask a service, whose port 80 is both HTTP and the echo of
// datagrams.
func (s *Stage) StartFlows(from *host.Host, chaos, address, name string) (*Flows, error) {
	f := &Flows{out: filepath.Join(s.Lab.Dir, name+"-flows.json")}
	var err error
	f.process, err = from.Start(name+"-flows", chaos, "load", "flows", "--url", "http://"+address+"/", "--udp", address+":80", "--out", f.out)
	return f, err
}

// Stop ends the load and returns its report; that requests failed is for the
// caller to judge, that there were none is an error.
func (f *Flows) Stop() (*load.FlowReport, error) {
	report := &load.FlowReport{}
	if err := errors.Join(f.process.Stop(loadStops), read(f.out, report)); err != nil {
		return nil, fmt.Errorf("load of flows: %w\n%s", err, f.process.Tail(5))
	}
	if report.Fresh.Requests == 0 || report.Kept.Requests == 0 || report.UDP.Requests == 0 {
		return report, errors.New("load of flows: a kind of client asked nothing")
	}
	return report, nil
}

// Addresses are those of every server's API.
func (s *Stage) Addresses() []string {
	var addresses []string
	for _, server := range s.Servers {
		addresses = append(addresses, server.Host.Address+":"+apiPort)
	}
	return addresses
}

func read(path string, into any) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return json.Unmarshal(text, into)
}
