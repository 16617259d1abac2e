package main

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"

	"github.com/balsa-run/balsa/client"
	"github.com/balsa-run/balsa/pki"
)

// manager is who the command line applies as.
const manager = "balsa-cli"

// configFile finds the client configuration.
func (a *app) configFile() (string, error) {
	if a.configPath != "" {
		return a.configPath, nil
	}
	if path := os.Getenv("BALSA_CONFIG"); path != "" {
		return path, nil
	}
	places := []string{filepath.Join("balsa-dev", "admin.yaml")}
	if home, err := os.UserHomeDir(); err == nil {
		places = append(places, filepath.Join(home, ".balsa", "admin.yaml"))
	}
	for _, path := range places {
		if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
			return path, nil
		}
	}
	return "", fmt.Errorf("no client configuration: none of %s exists and $BALSA_CONFIG is not set; give one with --config (a server's --data-dir has admin.yaml, and balsa user create makes others)", strings.Join(places, ", "))
}

func (a *app) connect() (*client.Client, error) {
	path, err := a.configFile()
	if err != nil {
		return nil, err
	}
	a.client, err = client.FromFile(path, func(cfg *client.Config) {
		// Zero would mean the default, and a person who says 0 means once.
		if cfg.RetryFor = a.retryFor; a.retryFor == 0 {
			cfg.RetryFor = -1
		}
	})
	return a.client, err
}

// outage is how long something that is followed waits for a server to go on with.
func (a *app) outage() time.Duration { return max(a.retryFor, 1) }

// disconnect keeps the servers that the client has learned of for the next
// program, which may find that those it knew are gone.
func (a *app) disconnect() {
	if a.client == nil {
		return
	}
	if err := a.client.SaveServers(); err != nil {
		slog.Debug("the servers' addresses are not kept", "error", err)
	}
	a.client.Close()
}

// explain prints an error as a person wants it: what the server said, every
// field it refused, whether a write took place, and what to try.
func (a *app) explain(err error) {
	text := err.Error()
	detail := client.Detail(err)
	var failure *connect.Error
	if errors.As(err, &failure) {
		// Keep what we said around it, without the protocol's code.
		text = strings.Replace(text, failure.Error(), failure.Message(), 1)
	}
	fmt.Fprintf(a.errOut, "error: %s\n", text)
	for _, violation := range detail.GetViolations() {
		if !strings.Contains(text, violation.GetField()) {
			fmt.Fprintf(a.errOut, "  %s: %s\n", violation.GetField(), violation.GetMessage())
		}
	}
	if detail.GetApplied() == balsav1.ErrorDetail_APPLIED_UNKNOWN {
		fmt.Fprintln(a.errOut, "  it is not known whether this took place: look before you repeat it")
	}
	if hint := hintOf(err, detail); hint != "" && !strings.Contains(text, hint) {
		fmt.Fprintf(a.errOut, "  hint: %s\n", hint)
	}
}

// hintOf is what to try next: what the server says, or what a person at a
// terminal can do about refusals that are made without its knowing how.
func hintOf(err error, detail *balsav1.ErrorDetail) string {
	switch {
	case detail.GetHint() != "":
		return detail.GetHint()
	case detail.GetReason() == "NoLeader":
		return "more than half of the servers must run and reach each other: start those that are down, or try again if one was just lost"
	case detail == nil && connect.CodeOf(err) == connect.CodeResourceExhausted:
		return "ask for less at once, or split the object"
	}
	return ""
}

func (a *app) configCommand() *cobra.Command {
	command := &cobra.Command{Use: "config", Short: "Show which cluster this program talks to, and as whom"}
	command.AddCommand(&cobra.Command{
		Use: "view", Short: "Show the client configuration, without its key", Args: cobra.NoArgs,
		Example: "  balsa config view\n  balsa --config prod.yaml config view",
		RunE: func(*cobra.Command, []string) error {
			path, err := a.configFile()
			if err != nil {
				return err
			}
			config, err := pki.ReadConfigFile(path)
			if err != nil {
				return err
			}
			credential, err := config.Credential()
			if err != nil {
				return err
			}
			fmt.Fprintf(a.out, "file:     %s\nservers:  %s\ncluster:  %s\nidentity: %s\nexpires:  %s\n", path,
				strings.Join(config.Servers, ", "), config.ClusterID, credential.Identity(), credential.Expires().Format("2006-01-02 15:04:05 MST"))
			return nil
		},
	})
	return command
}
