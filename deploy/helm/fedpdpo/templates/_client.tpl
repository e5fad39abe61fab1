{{- /* The pod of a client, which a Job may not change; takes root, client, and the name of its volume. */}}
{{- define "fedpdpo.client-pod" -}}
{{- $root := .root }}
{{- $client := .client }}
{{- $shared := $root.Values.client -}}
metadata:
  labels:
    {{- include "fedpdpo.labels" $root | nindent 4 }}
    app.kubernetes.io/component: client
    fedpdpo/client: {{ $client.name | quote }}
  {{- if $root.Values.metrics.annotations }}
  annotations: {prometheus.io/scrape: "true", prometheus.io/port: "9101"}
  {{- end }}
spec:
  automountServiceAccountToken: false
  # Variables of Services would be taken for settings: FEDPDPO_SERVER_PORT=tcp://...
  enableServiceLinks: false
  restartPolicy: {{ ternary "OnFailure" "Always" (eq $shared.kind "Job") }}
  # An interrupted round saves its step when it is asked to end.
  terminationGracePeriodSeconds: 120
  securityContext: {{- include "fedpdpo.pod-security" $root | nindent 4 }}
  containers:
    - name: client
      image: {{ $shared.image | quote }}
      imagePullPolicy: {{ $shared.pullPolicy }}
      args:
        - --server={{ $shared.server | default (printf "%s-server:%v" $root.Release.Name $root.Values.server.port) }}
        - --client-id={{ $client.name }}
        - --data=/data
        - --state-dir=/state
        - --metrics-host=0.0.0.0
        - --metrics-port=9101
        - --log-format=json
        {{- if $client.tlsSecret }}
        - --tls=/certs
        {{- end }}
        {{- if $client.tokenSecret }}
        - --token-file=/token/token
        {{- end }}
        {{- include "fedpdpo.flags" (mergeOverwrite (dict) $shared.settings (default (dict) $client.settings)) | nindent 8 }}
      env:
        - {name: HF_HOME, value: /models}
      ports:
        - {name: metrics, containerPort: 9101}
      livenessProbe: {httpGet: {path: /metrics, port: metrics}, initialDelaySeconds: 600, periodSeconds: 60, failureThreshold: 10}
      securityContext: {{- include "fedpdpo.container-security" $root | nindent 8 }}
      {{- $resources := deepCopy $shared.resources }}
      {{- if $shared.gpus }}
      {{- $resources = merge (dict "limits" (dict "nvidia.com/gpu" $shared.gpus)) $resources }}
      {{- end }}
      resources: {{- toYaml $resources | nindent 8 }}
      volumeMounts:
        - {name: state, mountPath: /state}
        - {name: data, mountPath: /data, readOnly: true}
        - {name: models, mountPath: /models}
        - {name: tmp, mountPath: /tmp}
        {{- if $client.tlsSecret }}
        - {name: certs, mountPath: /certs, readOnly: true}
        {{- end }}
        {{- if $client.tokenSecret }}
        - {name: token, mountPath: /token, readOnly: true}
        {{- end }}
  volumes:
    - {name: state, persistentVolumeClaim: {claimName: {{ .name }}}}
    - name: data
      {{- toYaml $client.data | nindent 6 }}
    - {name: tmp, emptyDir: {}}
    {{- if $shared.modelsClaim }}
    - {name: models, persistentVolumeClaim: {claimName: {{ $shared.modelsClaim | quote }}}}
    {{- else }}
    - {name: models, emptyDir: {}}
    {{- end }}
    {{- with $client.tlsSecret }}
    - {name: certs, secret: {secretName: {{ . | quote }}, defaultMode: 0440}}
    {{- end }}
    {{- with $client.tokenSecret }}
    - {name: token, secret: {secretName: {{ . | quote }}, defaultMode: 0440}}
    {{- end }}
  {{- with $shared.nodeSelector }}
  nodeSelector: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $shared.tolerations }}
  tolerations: {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}
