package stage

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
)

// Balsa runs the command line on the operator's host and returns what it
// printed.
func (s *Stage) Balsa(ctx context.Context, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return s.Operator.Run(ctx, s.options.Binary, append([]string{"--config", s.Admin()}, args...)...)
}

// Decode runs the command line with JSON output and reads it.
func (s *Stage) Decode(ctx context.Context, into any, args ...string) error {
	out, err := s.Balsa(ctx, append(args, "-o", "json")...)
	if err != nil {
		return err
	}
	if err := json.Unmarshal([]byte(out), into); err != nil {
		return fmt.Errorf("balsa %s printed no JSON: %w: %s", strings.Join(args, " "), err, out)
	}
	return nil
}

// Token makes a join token. On a slow machine the servers may be choosing a
// leader just then, which is nobody's fault.
func (s *Stage) Token(ctx context.Context, role string) (token string, err error) {
	err = s.Until(ctx, readyTimeout, "a join token", func(ctx context.Context) error {
		out, err := s.Balsa(ctx, "token", "create", "--role", role)
		token = strings.TrimSpace(out)
		return err
	})
	return token, err
}

// Status is what `balsa cluster status` tells.
type Status struct {
	LeaderID string         `json:"leaderId"`
	Term     json.Number    `json:"term"`
	Diverged []string       `json:"diverged"`
	Members  []StatusMember `json:"members"`
}

// StatusMember is a server in a Status.
type StatusMember struct {
	ID      string `json:"id"`
	Name    string `json:"name"`
	Address string `json:"address"`
	State   string `json:"state"`
	Voter   bool   `json:"voter"`
	Version string `json:"version"`
	Spaces  []struct {
		Space    string      `json:"space"`
		Revision json.Number `json:"revision"`
		Hash     string      `json:"hash"`
	} `json:"spaces"`
}

func (s *Status) term() int64 {
	term, err := s.Term.Int64()
	if err != nil {
		return 0
	}
	return term
}

func (s *Status) voters() int {
	count := 0
	for _, member := range s.Members {
		if member.Voter {
			count++
		}
	}
	return count
}

// Status asks the cluster for its members.
func (s *Stage) Status(ctx context.Context) (*Status, error) {
	status := &Status{}
	return status, s.Decode(ctx, status, "cluster", "status")
}

// Leader is the server that leads, as the members of the newest term know it:
// one that is cut off may know nothing, or the past.
func (s *Stage) Leader(ctx context.Context) (*Member, error) {
	var newest Status
	for _, server := range s.Servers {
		if !server.Process.Running() {
			continue
		}
		status := Status{}
		if err := s.Decode(ctx, &status, "--config", s.adminAt(server), "cluster", "status"); err != nil {
			continue
		}
		if status.LeaderID != "" && status.term() >= newest.term() {
			newest = status
		}
	}
	for _, member := range newest.Members {
		for _, server := range s.Servers {
			if member.ID == newest.LeaderID && server.Host.Name == member.Name {
				return server, nil
			}
		}
	}
	return nil, errors.New("no server leads")
}

// Pod is what the stage needs to know of a pod.
type Pod struct {
	Metadata struct {
		Name              string `json:"name"`
		UID               string `json:"uid"`
		DeletionTimestamp string `json:"deletionTimestamp"`
	} `json:"metadata"`
	Spec struct {
		NodeName string `json:"nodeName"`
	} `json:"spec"`
	Status struct {
		Phase      string `json:"phase"`
		PodIP      string `json:"podIP"`
		Conditions []struct {
			Type   string `json:"type"`
			Status string `json:"status"`
		} `json:"conditions"`
		ContainerStatuses []struct {
			RestartCount int    `json:"restartCount"`
			ContainerID  string `json:"containerID"`
			State        struct {
				Running *struct {
					StartedAt string `json:"startedAt"`
				} `json:"running"`
			} `json:"state"`
		} `json:"containerStatuses"`
	} `json:"status"`
}

// Ready tells whether the pod takes requests.
func (p *Pod) Ready() bool {
	for _, condition := range p.Status.Conditions {
		if condition.Type == "Ready" {
			return condition.Status == "True"
		}
	}
	return false
}

// Pods lists the pods of a namespace.
func (s *Stage) Pods(ctx context.Context, namespace string) ([]Pod, error) {
	var list struct {
		Items []Pod `json:"items"`
	}
	return list.Items, s.Decode(ctx, &list, "get", "pods", "-n", namespace)
}

// WaitReady waits until exactly count pods of a namespace are, and are Ready.
func (s *Stage) WaitReady(ctx context.Context, namespace string, count int, patience time.Duration) ([]Pod, error) {
	var pods []Pod
	err := s.Until(ctx, patience, fmt.Sprintf("%d pods of %s to be ready", count, namespace), func(ctx context.Context) error {
		var err error
		if pods, err = s.Pods(ctx, namespace); err != nil {
			return err
		}
		ready := 0
		for i := range pods {
			if pods[i].Ready() {
				ready++
			}
		}
		if ready != count || len(pods) != count {
			return fmt.Errorf("%d of %d pods are ready", ready, len(pods))
		}
		return nil
	})
	return pods, err
}

// WaitNodes waits until count nodes are Ready.
func (s *Stage) WaitNodes(ctx context.Context, count int) error {
	return s.Until(ctx, readyTimeout, fmt.Sprintf("%d nodes to be ready", count), func(ctx context.Context) error {
		var list struct {
			Items []Pod `json:"items"` // a Node's conditions have the same shape
		}
		if err := s.Decode(ctx, &list, "get", "nodes"); err != nil {
			return err
		}
		ready := 0
		for i := range list.Items {
			if list.Items[i].Ready() {
				ready++
			}
		}
		if ready < count {
			return fmt.Errorf("%d are", ready)
		}
		return nil
	})
}

// fatalError ends Until at once.
type fatalError struct{ error }

func fatal(err error) error { return fatalError{err} }

func (f fatalError) Unwrap() error { return f.error }

// Until asks again and again until check returns nil, at most for patience.
func (s *Stage) Until(ctx context.Context, patience time.Duration, what string, check func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	ticker := time.NewTicker(pollPause)
	defer ticker.Stop()
	for {
		err := check(ctx)
		if err == nil {
			return nil
		}
		var final fatalError
		if errors.As(err, &final) {
			return fmt.Errorf("waited for %s: %w", what, err)
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return fmt.Errorf("waited %v for %s: %w", patience, what, err)
		}
	}
}

// Whole returns which server does not vote or does not answer.
func (s *Status) Whole(servers int) error {
	if s.voters() != servers || len(s.Members) != servers {
		return fmt.Errorf("%d of %d members vote, %d are wanted", s.voters(), len(s.Members), servers)
	}
	for _, member := range s.Members {
		if member.State == "unreachable" {
			return fmt.Errorf("member %s is unreachable", member.ID)
		}
	}
	return nil
}

// Agreed returns which member has not the state of the others. While writes go
// on, some always lag.
func (s *Status) Agreed() error {
	if len(s.Diverged) > 0 {
		return fatal(fmt.Errorf("members disagree: %v", s.Diverged))
	}
	for _, member := range s.Members {
		if objects := member.objects(); objects != s.Members[0].objects() {
			return fmt.Errorf("member %s is at %s, %s at %s", member.ID, objects, s.Members[0].ID, s.Members[0].objects())
		}
	}
	return nil
}

func (m *StatusMember) objects() string {
	for _, space := range m.Spaces {
		if space.Space == "objects" {
			return fmt.Sprintf("revision %v hash %s", space.Revision, space.Hash)
		}
	}
	return "no state"
}
