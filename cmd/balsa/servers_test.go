package main

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/balsa-run/balsa/pki"
)

// TestLearnedServers: with the only server that admin.yaml once named gone for
// good, the command line works through those that it has learned of.
func TestLearnedServers(t *testing.T) {
	first := startServer(t, t.TempDir(), "s1", "--init", "--log-level", "error")
	t.Cleanup(func() { first.stop() })
	waitUntilServing(t, first)
	config, err := pki.ReadConfigFile(first.config)
	must(t, err)
	if len(config.Servers) != 1 {
		t.Fatalf("a new cluster's configuration names %v", config.Servers)
	}
	servers := []*server{first}
	for _, name := range []string{"s2", "s3"} {
		token := done(t, first.config, "token", "create", "--role", "server")
		s := startServer(t, t.TempDir(), name, "--join", first.listen, "--token", strings.TrimSpace(token), "--log-level", "error")
		t.Cleanup(func() { s.stop() })
		servers = append(servers, s)
	}
	eventually(t, func() error {
		if status := done(t, first.config, "cluster", "status", "-o", "json"); strings.Count(status, `"voter": true`) != len(servers) {
			return fmt.Errorf("not all vote: %s", status)
		}
		return nil
	})
	eventually(t, func() error {
		done(t, first.config, "get", "namespaces") // which learns
		config, err := pki.ReadConfigFile(first.config)
		must(t, err)
		for _, s := range servers {
			if !slices.Contains(config.Servers, s.listen) {
				return fmt.Errorf("%v does not name %s", config.Servers, s.listen)
			}
		}
		return nil
	})
	if code := first.stop(); code != exitOK {
		t.Fatalf("the first server ended with %d", code)
	}
	if out := done(t, first.config, "get", "namespace", "default", "-o", "name"); out != "namespace/default\n" {
		t.Errorf("it prints %q", out)
	}
	config, err = pki.ReadConfigFile(first.config)
	must(t, err)
	if config.Servers[0] == first.listen || !slices.Contains(config.Servers, servers[1].listen) {
		t.Errorf("without s1 at %s the configuration names %v", first.listen, config.Servers)
	}
}
