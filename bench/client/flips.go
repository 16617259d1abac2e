package main

import (
	"context"
	"fmt"
	"net"
	"os/exec"
	"slices"
	"strconv"
	"time"

	"github.com/balsa-run/balsa/client"
	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
)

// flipTimes are, in milliseconds since the write was sent.
type flipTimes struct {
	// FirstMS is when the first answer of the new endpoint arrived;
	// AcknowledgedMS when the API had answered.
	FirstMS        []float64 `json:"firstMS"`
	AcknowledgedMS []float64 `json:"acknowledgedMS"`
}

// The label that tells the pods of the service apart, and the pods' names, which
// are its values as well.
const (
	flipLabel = "at"
	flipNear  = "near"
	flipFar   = "far"
	// flipRest lets a change be the first after a pause, as most are.
	flipRest = 300 * time.Millisecond
)

// flips lets the service select the one pod, then the other, and looks from here
// when datagrams reach it. Only the way to the far pod counts.
func flips(ctx context.Context, o options) (times flipTimes, err error) {
	c, err := client.FromFile(o.config)
	if err != nil {
		return times, err
	}
	defer c.Close()
	for i := range o.count + 1 {
		if _, _, err := flip(ctx, c, o.service, flipNear); err != nil {
			return times, err
		}
		if err := rest(ctx, flipRest); err != nil {
			return times, err
		}
		first, acknowledged, err := flip(ctx, c, o.service, flipFar)
		if err != nil {
			return times, err
		}
		if i > 0 {
			times.FirstMS, times.AcknowledgedMS = append(times.FirstMS, milliseconds(first)), append(times.AcknowledgedMS, milliseconds(acknowledged))
		}
		if err := rest(ctx, flipRest); err != nil {
			return times, err
		}
	}
	return times, nil
}

func flip(ctx context.Context, c *client.Client, name, to string) (first, acknowledged time.Duration, err error) {
	service, err := client.Get[*balsav1.Service](ctx, c, "default", name, client.GetOptions{})
	if err != nil {
		return 0, 0, err
	}
	selector := map[string]string{flipLabel: to}
	service.Spec.Selector = selector
	prober := startProber(ctx, serviceAddress(service))
	began := time.Now()
	_, err = client.Update(ctx, c, service, client.WriteOptions{})
	acknowledged = time.Since(began)
	if err == nil {
		err = prober.until(ctx, "an answer of pod "+to, func(probes []probe) bool {
			return slices.ContainsFunc(probes, func(one probe) bool { return one.by == to })
		})
	}
	for _, one := range prober.stop() {
		if after := one.answered.Sub(began); one.by == to && after > 0 && (first == 0 || after < first) {
			first = after
		}
	}
	return first, acknowledged, err
}

func serviceAddress(s *balsav1.Service) string {
	return net.JoinHostPort(s.GetSpec().GetClusterIp(), strconv.Itoa(servicePort))
}

func rest(ctx context.Context, length time.Duration) error {
	timer := time.NewTimer(length)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// outages are how long a service was away.
type outages struct {
	OutageMS []float64 `json:"outageMS"`
	// Unanswered counts the probes that nobody answered.
	Unanswered []int `json:"unanswered"`
}

const (
	// answersBefore and answersAfter stand round an outage.
	answersBefore = 50
	answersAfter  = 100
	// outageRest is what the agent has between two outages.
	outageRest = 3 * time.Second
)

// deletions has somebody delete the table of the services' rules.
func deletions(ctx context.Context, o options) (report outages, err error) {
	for range o.count {
		probes, err := deletion(ctx, net.JoinHostPort(o.address, strconv.Itoa(servicePort)))
		if err != nil {
			return report, err
		}
		missing := 0
		for _, one := range probes {
			if one.by == "" {
				missing++
			}
		}
		report.OutageMS, report.Unanswered = append(report.OutageMS, milliseconds(outage(probes))), append(report.Unanswered, missing)
		if err := rest(ctx, outageRest); err != nil {
			return report, err
		}
	}
	return report, nil
}

func deletion(ctx context.Context, address string) ([]probe, error) {
	prober := startProber(ctx, address)
	err := prober.until(ctx, "answers before the table is deleted", func(probes []probe) bool { return answeredAfter(probes, time.Time{}) >= answersBefore })
	if err == nil {
		var out []byte
		if out, err = exec.CommandContext(ctx, "nft", "delete", "table", "ip", "balsa").CombinedOutput(); err != nil {
			err = fmt.Errorf("nft delete table ip balsa: %w: %s", err, out)
		}
	}
	deleted := time.Now()
	if err == nil {
		err = prober.until(ctx, "answers after the table was deleted", func(probes []probe) bool { return answeredAfter(probes, deleted) >= answersAfter })
	}
	probes := prober.stop()
	// Those that were under way when it ended say nothing.
	for len(probes) > 0 && probes[len(probes)-1].by == "" {
		probes = probes[:len(probes)-1]
	}
	return probes, err
}

func answeredAfter(probes []probe, at time.Time) (count int) {
	for _, one := range probes {
		if one.by != "" && one.sent.After(at) {
			count++
		}
	}
	return count
}
