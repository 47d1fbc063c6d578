// Command node is a whole single-node Kubernetes in one binary: etcd, the
// control plane, the kubelet, kube-proxy, DNS, and kubectl as its client.
//
// It exists so that a machine without Docker can still run real pods: every
// component is upstream's own `app` package, chosen by the first argument, and
// one link shares the code they have in common. Starting, wiring and stopping
// the components is left to the Python package beside this folder.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/coremain"
	_ "github.com/coredns/coredns/plugin/bind"
	_ "github.com/coredns/coredns/plugin/cache"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/health"
	_ "github.com/coredns/coredns/plugin/kubernetes"
	_ "github.com/coredns/coredns/plugin/ready"
	_ "github.com/coredns/coredns/plugin/reload"
	"github.com/spf13/cobra"
	"go.etcd.io/etcd/server/v3/etcdmain"
	"k8s.io/component-base/cli"
	_ "k8s.io/component-base/logs/json/register"
	_ "k8s.io/component-base/metrics/prometheus/clientgo"
	_ "k8s.io/component-base/metrics/prometheus/version"
	kubectl "k8s.io/kubectl/pkg/cmd"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	manager "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	proxy "k8s.io/kubernetes/cmd/kube-proxy/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"
)

// components maps the first argument to the command that serves it.
var components = map[string]func() *cobra.Command{
	"kube-apiserver":          apiserver.NewAPIServerCommand,
	"kube-controller-manager": manager.NewControllerManagerCommand,
	"kube-scheduler":          func() *cobra.Command { return scheduler.NewSchedulerCommand() },
	"kube-proxy":              proxy.NewProxyCommand,
	"kubelet":                 func() *cobra.Command { return kubelet.NewKubeletCommand(context.Background()) },
	"kubectl":                 kubectl.NewDefaultKubectlCommand,
}

// dnsDirectives is the order in which CoreDNS chains the plugins linked above.
var dnsDirectives = []string{"bind", "reload", "health", "ready", "errors", "cache", "kubernetes"}

func main() {
	if len(os.Args) < 2 {
		fail("no component named")
	}
	name := os.Args[1]
	os.Args = append(os.Args[:1], os.Args[2:]...)
	switch name {
	case "etcd":
		etcdmain.Main(append([]string{"etcd"}, os.Args[1:]...))
	case "coredns":
		dnsserver.Directives = dnsDirectives
		coremain.Run()
	default:
		command, known := components[name]
		if !known {
			fail("unknown component " + name)
		}
		os.Exit(cli.Run(command()))
	}
}

func fail(problem string) {
	fmt.Fprintln(os.Stderr, "node:", problem+"; accepted: etcd, coredns, kube-apiserver, kube-controller-manager, kube-scheduler, kube-proxy, kubelet, kubectl")
	os.Exit(2)
}
