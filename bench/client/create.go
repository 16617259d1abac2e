package main

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/balsa-run/balsa/client"
	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/object"
)

const (
	// createWorkers make services at once.
	createWorkers = 32
	createFor     = 10 * time.Minute
)

// created is how long it took.
type created struct {
	CreatedMS   float64 `json:"createdMS"`   // all were acknowledged
	EndpointsMS float64 `json:"endpointsMS"` // each had its endpoints
}

// create makes services that all select the same pods, and waits until each has
// so many endpoints.
func create(ctx context.Context, o options) (report created, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, createFor, fmt.Errorf("%d services were not there within %v", o.services, createFor))
	defer cancel()
	c, err := client.FromFile(o.config)
	if err != nil {
		return report, err
	}
	defer c.Close()
	began := time.Now()
	if err := createAll(ctx, c, o.services); err != nil {
		return report, err
	}
	report.CreatedMS = milliseconds(time.Since(began))
	err = complete(ctx, c, o.services, o.endpoints)
	report.EndpointsMS = milliseconds(time.Since(began))
	return report, err
}

// marker is one more service of the same pods.
type marker struct {
	Address string `json:"address"`
}

// mark makes a service whose datagrams are answered. What an agent knows is in the
// order of revisions, so one that has the marker has all that came before.
func mark(ctx context.Context, o options) (marker, error) {
	c, err := client.FromFile(o.config)
	if err != nil {
		return marker{}, err
	}
	defer c.Close()
	made, err := client.Create(ctx, c, manyService(o.service, "UDP"), client.WriteOptions{})
	return marker{Address: made.GetSpec().GetClusterIp()}, err
}

func manyService(name, protocol string) *balsav1.Service {
	return &balsav1.Service{ApiVersion: "v1", Kind: "Service", Metadata: &balsav1.ObjectMeta{Namespace: "default", Name: name},
		Spec: &balsav1.ServiceSpec{Selector: map[string]string{"app": "flip"},
			Ports: []*balsav1.ServicePort{{Name: "port", Protocol: protocol, Port: servicePort,
				TargetPort: &balsav1.IntOrString{Value: &balsav1.IntOrString_Int{Int: endpointPort}}}}}}
}

func createAll(ctx context.Context, c *client.Client, count int) error {
	var next atomic.Int64
	var workers sync.WaitGroup
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	for range createWorkers {
		workers.Go(func() {
			for i := int(next.Add(1)) - 1; i < count && ctx.Err() == nil; i = int(next.Add(1)) - 1 {
				if _, err := client.Create(ctx, c, manyService(serviceName(i), "TCP"), client.WriteOptions{}); err != nil && !client.IsAlreadyExists(err) {
					cancel(fmt.Errorf("create service %d: %w", i, err))
				}
			}
		})
	}
	workers.Wait()
	return context.Cause(ctx)
}

// complete waits until so many services have all their endpoints.
func complete(ctx context.Context, c *client.Client, services, endpoints int) error {
	have := map[string]int{}
	for event, err := range client.Watch[*balsav1.EndpointSlice](ctx, c, "default", client.WatchOptions{}) {
		if err != nil {
			return err
		}
		if name := object.OwningService(event.Object); len(event.Object.GetEndpoints()) == endpoints && len(name) == len(serviceName(0)) {
			have[name] = endpoints
		}
		if len(have) >= services {
			return nil
		}
	}
	return context.Cause(ctx)
}

// await waits until the service at an address answers here.
func await(ctx context.Context, o options) (any, error) {
	prober := startProber(ctx, o.address+":"+strconv.Itoa(servicePort))
	err := prober.until(ctx, "an answer of "+o.address, func(probes []probe) bool { return answeredAfter(probes, time.Time{}) > 0 })
	prober.stop()
	return struct{}{}, err
}
