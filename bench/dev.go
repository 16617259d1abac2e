package bench

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/balsa-run/balsa/chaos/stage"
	"github.com/balsa-run/balsa/chaos/world/host"
)

const (
	devPatience = 30 * time.Second
	devLog      = "dev.log"
)

// DevStart times `balsa dev`.
type DevStart struct {
	Ground *Ground
	Count  int
}

// Name is "dev-start".
func (DevStart) Name() string { return "dev-start" }

// Question is what is measured.
func (DevStart) Question() string {
	return "How long from the start of the process `balsa dev`, in an empty folder and a fresh network namespace, until a watch of the API shows its node Ready?"
}

// Unit is milliseconds.
func (DevStart) Unit() Unit { return milliseconds() }

// Targets are the promised one and the one aimed for.
func (DevStart) Targets() []Target {
	return []Target{{Of: Median, Under: 2000}, {Of: Median, Under: 1000, Aim: true}}
}

// Run starts one cluster of one after the other, each on a host of its own.
func (m DevStart) Run(ctx context.Context) (samples Samples, err error) {
	err = m.Ground.lab(func(lab *host.Lab) error {
		for i := range m.Count {
			h, err := lab.AddHost(fmt.Sprintf("d%d", i))
			if err != nil {
				return err
			}
			took, err := m.once(ctx, h)
			if err != nil {
				return err
			}
			samples.Values = append(samples.Values, float64(took)/float64(time.Millisecond))
		}
		return nil
	})
	return samples, err
}

func (m DevStart) once(ctx context.Context, h *host.Host) (took time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, devPatience)
	defer cancel()
	log, err := os.Create(filepath.Join(h.Dir, devLog))
	if err != nil {
		return 0, err
	}
	defer log.Close()
	command := h.Command(ctx, m.Ground.Programs.Balsa, "dev", "--data-dir", filepath.Join(h.Dir, "data"), "--cgroup-prefix", h.CgroupPrefix())
	command.Stderr = log
	command.Cancel = func() error { return command.Process.Signal(syscall.SIGTERM) }
	command.WaitDelay = devPatience
	command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	out, err := command.StdoutPipe()
	if err != nil {
		return 0, err
	}
	began := time.Now()
	if err := command.Start(); err != nil {
		return 0, err
	}
	took, err = untilReady(out, began)
	if err == nil {
		err = m.nodeIsReady(ctx, h)
	}
	if err != nil {
		err = fmt.Errorf("balsa dev on %s: %w: %s", h.Name, err, tail(log.Name()))
	}
	// It was told to end: how it says so is not what is measured.
	cancel()
	_ = command.Wait()
	return took, err
}

// untilReady reads what dev prints up to the line that says Ready.
func untilReady(out io.Reader, began time.Time) (time.Duration, error) {
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if strings.HasPrefix(lines.Text(), "balsa dev is ready") {
			return time.Since(began), nil
		}
	}
	return 0, errors.Join(errors.New("it ended before its node was Ready"), lines.Err())
}

// nodeIsReady checks what dev said with the command line.
func (m DevStart) nodeIsReady(ctx context.Context, h *host.Host) error {
	command := h.Command(ctx, m.Ground.Programs.Balsa, "--config", filepath.Join(h.Dir, "data", "admin.yaml"), "get", "nodes", "-o", "json")
	text, err := command.Output()
	if err != nil {
		return fmt.Errorf("ask for its node: %w", err)
	}
	var list struct {
		Items []stage.Pod `json:"items"` // a Node's conditions have the same shape
	}
	if err := json.Unmarshal(text, &list); err != nil {
		return fmt.Errorf("ask for its node: %w", err)
	}
	if len(list.Items) != 1 || !list.Items[0].Ready() {
		return fmt.Errorf("it said ready, but the API shows %s", text)
	}
	return nil
}

func tail(path string) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	return string(text[max(0, len(text)-tailBytes):])
}

const tailBytes = 2000
